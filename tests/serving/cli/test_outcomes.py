from tests.support.cli import run_cli
from tests.support.outcome_tables import create_outcome, create_suggestion, write_tables
from tests.support.outcomes import read_table


def test_listings_are_forgotten_by_argument_and_by_file(tmp_path):
    url = write_tables(
        tmp_path / "outcomes",
        [create_suggestion(name, 1) for name in "abc"],
        [create_outcome(name, 2) for name in "abc"],
    )
    (tmp_path / "ids").write_text("b\n\n")
    done = run_cli("outcomes", "forget", url, "a", "--ids-file", tmp_path / "ids")
    assert "2 suggestions, 0 shadows, 2 outcomes of 2 listings deleted" in done.stdout + done.stderr
    assert [row["listing_id"] for row in read_table(tmp_path / "outcomes", "outcomes")] == ["c"]


def test_without_an_id_nothing_is_done(tmp_path):
    done = run_cli("outcomes", "forget", tmp_path)
    assert done.returncode == 2
    assert "give ids of listings, or --ids-file" in done.stdout + done.stderr


def test_old_files_are_deleted_by_hand(tmp_path):
    url = write_tables(tmp_path, [create_suggestion("a", 1)], [create_outcome("a", 2)])
    assert "files deleted" in run_cli("outcomes", "expire", url, "--days", 10).stdout
    assert read_table(tmp_path, "outcomes") == []
