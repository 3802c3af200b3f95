import pytest

from vision.runtime.memory import measure_available_memory

MIB = 2**20


@pytest.fixture
def read(tmp_path):
    def read(limit=None, used=0, inactive_file=0, meminfo="MemTotal: 900000 kB\nMemAvailable:  102400 kB\n"):
        (tmp_path / "meminfo").write_text(meminfo)
        if limit is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{used}\n")
            (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\n")
        return measure_available_memory(tmp_path / "meminfo", tmp_path)

    return read


@pytest.mark.parametrize(
    ("limit", "used", "inactive_file", "mib"),
    [
        (None, 0, 0, 100),
        ("max", 0, 0, 100),
        (500 * MIB, 100 * MIB, 0, 100),
        (90 * MIB, 60 * MIB, 0, 30),
        (90 * MIB, 60 * MIB, 20 * MIB, 50),
        (90 * MIB, 91 * MIB, 0, 0),
    ],
)
def test_it_is_the_least_of_machine_and_container(read, limit, used, inactive_file, mib):
    assert read(limit, used, inactive_file) == mib * MIB


def test_a_system_that_does_not_say_is_none(read):
    assert read(meminfo="MemTotal: 1 kB\n") is None


def test_this_machine_says():
    assert measure_available_memory() > 0
