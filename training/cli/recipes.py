"""The verb `recipes`: which recipe suits which data and machine."""

from typing import Annotated

import typer

from training.recipe import list_shipped_recipes, read_about, read_recipe_text

__all__ = ["recipes"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file, to start one of your own from.")] = None,
) -> None:
    """List the shipped recipes with data, machine, time and expected result, or print one of them.

    Example: listing-vision recipes linear_probe > mine.toml
    """
    if name is not None:
        typer.echo(read_recipe_text(name), nl=False)
        return
    for shipped in list_shipped_recipes():
        about = read_about(shipped)
        assert about is not None
        typer.echo(f"{shipped}  ({about.machine.upper()})")
        for what, text in (("data", about.data), ("time", about.time), ("expected", about.expected)):
            typer.echo(f"  {what + ':':<10}{text}")
    typer.echo(
        "print one: listing-vision recipes NAME; change a field: listing-vision train … --recipe NAME --set epochs=3"
    )
