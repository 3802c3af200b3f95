"""Training that begins with a bundle: its backbone, and the rows of its heads whose classes are still there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from training.errors import RecipeError
from training.recipe import Recipe
from vision.bundle import Bundle, load_bundle
from vision.model import ListingClassifier
from vision.runtime.wording import format_count
from vision.taxonomy import Taxonomy

__all__ = ["CarriedHeads", "carry_over_heads", "load_initial_bundle"]

_NUM_NAMED = 20
"""Classes that the description names, of each kind."""


@dataclass(frozen=True, kw_only=True)
class CarriedHeads:
    """What became of the rows of a bundle's heads, by the ids of their classes."""

    carried: tuple[str, ...]
    """`fruit/apple`, and brands by their ids; 'no brand', which every head has, is not among them."""
    initialised: tuple[str, ...]
    """In the taxonomy, with nothing to carry over: the bundle lacks them, or was migrated and has not seen them."""
    left_behind: tuple[str, ...]
    """In the bundle's heads alone."""

    def __str__(self) -> str:
        parts = [f"{format_count(len(self.carried), 'row')} carried over"]
        for what, ids in (("initialised as new", self.initialised), ("left behind", self.left_behind)):
            more = f" and {len(ids) - _NUM_NAMED} more" if len(ids) > _NUM_NAMED else ""
            parts.append(f"{len(ids)} {what}{': ' if ids else ''}{', '.join(ids[:_NUM_NAMED])}{more}")
        return "; ".join(parts)


def load_initial_bundle(recipe: Recipe) -> Bundle | None:
    """Load the bundle whose folder a recipe's `weights` name; None where they name something else.

    Raises:
        BundleError: the folder is no bundle, or an incomplete or altered one.
        RecipeError: the bundle has another backbone, kind of brand head or precision than the recipe trains.
    """
    if recipe.weights in ("imagenet", "none") or not Path(recipe.weights).is_dir():
        return None
    bundle = load_bundle(Path(recipe.weights))
    source = f"weights {recipe.weights!r}: the bundle {bundle.info.model_name} {bundle.info.model_version}"
    for name in ("backbone", "brand_head"):
        there, asked = getattr(bundle.info, name), getattr(recipe, name)
        if there != asked:
            raise RecipeError(
                f"{source} has the {name} {there}, and the recipe {asked}; use --set {name}={there}, or other weights"
            )
    if bundle.info.precision != "fp32":
        raise RecipeError(f"{source} is in {bundle.info.precision}; use the fp32 bundle that it was made from")
    return bundle


@torch.no_grad()
def carry_over_heads(model: ListingClassifier, bundle: Bundle, taxonomy: Taxonomy) -> CarriedHeads:
    """Give the model's heads the rows of the bundle's classes that the taxonomy has, by id; the others stay.

    Args:
        model: with heads for the taxonomy, and the bundle's kind of brand head.
        bundle: of any taxonomy. Rows that its migration made up for classes never seen are not taken.
        taxonomy: of the labels to train on.
    """
    tensors = safetensors.torch.load_file(bundle.folder / "weights.safetensors")
    untrained = bundle.info.training.get("never_trained", {})
    parts = []
    for kind, old_ids, new_ids in (
        ("category", bundle.taxonomy.leaf_ids, taxonomy.leaf_ids),
        ("brand", _list_brand_ids(bundle.taxonomy), _list_brand_ids(taxonomy)),
    ):
        trained = {id_: row for row, id_ in enumerate(old_ids) if id_ not in untrained.get(kind, ())}
        _copy_rows(
            getattr(model, f"{kind}_head"),
            {name.removeprefix(f"{kind}_head."): t for name, t in tensors.items() if name.startswith(f"{kind}_head.")},
            [(trained[id_], row) for row, id_ in enumerate(new_ids) if id_ in trained],
        )
        parts.append((old_ids, new_ids, trained))
    return CarriedHeads(
        carried=tuple(id_ for _, new, trained in parts for id_ in new if id_ in trained and id_),
        initialised=tuple(id_ for _, new, trained in parts for id_ in new if id_ not in trained),
        left_behind=tuple(id_ for old, new, _ in parts for id_ in old if id_ not in new),
    )


def _list_brand_ids(taxonomy: Taxonomy) -> list[str]:
    """One a row of the brand head: the first is 'no brand', which has no id."""
    return ["", *(brand.id for brand in taxonomy.brands)]


def _copy_rows(head: nn.Module, theirs: dict[str, torch.Tensor], rows: Sequence[tuple[int, int]]) -> None:
    """Copy rows (old, new) of weight and bias, and all that is not by class: scale and statistics of a cosine head."""
    old, new = [old for old, _ in rows], [new for _, new in rows]
    for name, tensor in head.state_dict().items():
        if name in ("weight", "bias"):
            tensor[new] = theirs[name][old]
        else:
            tensor.copy_(theirs[name])
