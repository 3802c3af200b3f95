from typer.testing import CliRunner

from training.cli.recipes import recipes
from training.recipe import list_shipped_recipes, read_recipe_text
from vision.runtime.cli import create_cli_app


def call(*words):
    app = create_cli_app("")
    app.command()(recipes)
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_recipe_is_listed_with_its_machine_and_result():
    listed = call()
    assert all(f"{name}  (" in listed for name in list_shipped_recipes())
    assert "grocery_gpu  (GPU)" in listed
    assert listed.count("expected:") == len(list_shipped_recipes())


def test_one_is_printed_as_it_is():
    assert call("quick") == read_recipe_text("quick")
