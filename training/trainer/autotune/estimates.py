"""How long a recipe takes, from the measured speed of one of its stages."""

import torch

from training.recipe import Recipe, Stage
from training.trainer.distributed import Ranks
from training.trainer.progress import compute_work
from vision.errors import ListingVisionError

__all__ = ["choose_heaviest_stage", "choose_last_stage", "create_single_rank", "estimate_minutes"]


def estimate_minutes(recipe: Recipe, num_photos: int, *, stage: Stage, photos_per_s: float) -> float:
    """How long the recipe takes for so many training photos where one of its stages has this speed; val is left out."""
    # Features are made in one forward pass, as is a step that trains heads.
    probes_px = {each.photo_px for each in recipe.stages if each.trains == "heads_on_features"}
    work = sum(compute_work(Stage(photo_px=photo_px, epochs=1, trains="heads")) for photo_px in probes_px)
    work += sum(compute_work(each) * each.epochs for each in recipe.stages)
    return work / compute_work(stage) * num_photos / photos_per_s / 60


def choose_heaviest_stage(recipe: Recipe) -> Stage:
    """The stage whose steps take the most memory and time.

    Raises:
        ListingVisionError: no step runs photos through the model.
    """
    choose_last_stage(recipe)
    return max(recipe.stages, key=compute_work)


def choose_last_stage(recipe: Recipe) -> Stage:
    """The last stage whose steps run photos through the model.

    Raises:
        ListingVisionError: there is none.
    """
    stages = [stage for stage in recipe.stages if stage.trains != "heads_on_features"]
    if not stages:
        raise ListingVisionError("this recipe only trains heads_on_features, so no step runs photos through the model")
    return stages[-1]


def create_single_rank() -> Ranks:
    """One rank, on the first GPU if there is one."""
    return Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
