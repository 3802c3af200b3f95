"""A training recipe: a small TOML file, checked before anything expensive starts."""

import tomllib
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from vision.errors import RecipeError

__all__ = ["Recipe", "Stage", "load_recipe"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A number of epochs at one photo size. Small sizes first: a CPU trains 128 px three times faster than 224."""

    photo_px: int
    epochs: int

    def __post_init__(self) -> None:
        _require(32 <= self.photo_px <= 1024, "stages.photo_px", self.photo_px, "use 32..1024")
        _require(self.epochs >= 1, "stages.epochs", self.epochs, "use at least 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run learns. The defaults suit a fine-tune of a small backbone."""

    stages: tuple[Stage, ...]
    """One after the other, under one learning-rate schedule."""
    input_px: int = 224
    """Side of the square photo that the finished model is served."""
    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name."""
    weights: str = "imagenet"
    """`imagenet`, `none`, or the path of a safetensors file of the backbone."""
    seed: int = 0
    batch_size: int = 32
    """Photos in one optimizer step."""
    head_learning_rate: float = 2e-3
    """Peak for the two new heads; AdamW, linear warm-up, then a cosine to zero."""
    backbone_learning_rate: float = 6e-4
    """Peak for the pre-trained layers."""
    warmup_share: float = 0.05
    """Share of all steps."""
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    label_smoothing: float = 0.1
    brand_loss_weight: float = 0.5
    """Against 1 for the category loss."""
    dropout: float = 0.2
    smallest_crop: float = 0.35
    """Least share of a photo's area that a random crop keeps."""
    trivial_augment: bool = True
    """One random colour or geometry change a photo (Müller & Hutter, ICCV 2021)."""
    erasing_probability: float = 0.25
    """Random erasing (Zhong et al., AAAI 2020)."""
    flip_probability: float = 0.5
    """Mirroring; 0 where text matters more than variety."""
    ema_decay: float = 0.995
    """Of the averaged weights, which are the ones evaluated and exported; warmed up as in timm's ModelEmaV3."""
    gradient_clip_norm: float = 5.0
    checkpoint_every_steps: int = 100

    def __post_init__(self) -> None:
        _require(len(self.stages) > 0, "stages", self.stages, "give at least one [[stages]]")
        _require(32 <= self.input_px <= 1024, "input_px", self.input_px, "use 32..1024")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "batch norm needs at least 2")
        for name in ("head_learning_rate", "backbone_learning_rate", "gradient_clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "use a positive number")
        for name in ("warmup_share", "label_smoothing", "dropout", "erasing_probability", "flip_probability"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "use a share in 0..1")
        _require(0 < self.smallest_crop <= 1, "smallest_crop", self.smallest_crop, "use a share in (0, 1]")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "use 0 (off) to below 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "use 0 or more")
        _require(self.brand_loss_weight >= 0, "brand_loss_weight", self.brand_loss_weight, "use 0 or more")
        _require(self.checkpoint_every_steps >= 1, "checkpoint_every_steps", self.checkpoint_every_steps, "use 1+")

    @property
    def num_epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def photo_px_of_epoch(self, epoch: int) -> int:
        """Photo side of the epoch, counted from 0."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage.photo_px
            epoch -= stage.epochs
        raise IndexError(f"the recipe has no epoch {epoch}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, source: str) -> "Recipe":
        """Build from plain values.

        Raises:
            RecipeError: an unknown or missing field, a wrong type or value.
        """
        known = {field.name for field in fields(cls)}
        for name in raw:
            if name not in known:
                raise RecipeError(f"{source}: unknown field {name!r}; known: {', '.join(sorted(known))}")
        try:
            stages = tuple(Stage(**stage) for stage in raw.get("stages", ()))
            return cls(**{**raw, "stages": stages})
        except TypeError as error:
            raise RecipeError(f"{source}: {error}") from error
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from None


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe shipped with the package, by name, or one of the user's, by path.

    Raises:
        RecipeError: not found, not TOML, or a wrong value; names the field, the value and the way out.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"no recipe at {path}")
        text = path.read_text(encoding="utf-8")
    else:
        shipped = resources.files("training") / "recipes"
        names = sorted(entry.name.removesuffix(".toml") for entry in shipped.iterdir())
        if name_or_path not in names:
            raise RecipeError(
                f"no recipe named {name_or_path!r}; shipped: {', '.join(names)}; or give a path that ends in .toml"
            )
        text = (shipped / f"{name_or_path}.toml").read_text(encoding="utf-8")
    try:
        return Recipe.from_dict(tomllib.loads(text), source=f"recipe {name_or_path}")
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not TOML: {error}") from error


def _require(ok: bool, name: str, value: object, way_out: str) -> None:
    if not ok:
        raise RecipeError(f"{name} = {value!r}: {way_out}")
