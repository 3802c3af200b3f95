"""A training recipe: a small TOML file, checked before anything expensive starts."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from training.errors import RecipeError
from training.field_types import describe_wrong_type, find_wrong_type
from vision.bundle import BrandHead

__all__ = [
    "AboutRecipe",
    "KeptWeights",
    "Recipe",
    "Stage",
    "list_shipped_recipes",
    "load_recipe",
    "read_about",
    "read_recipe_text",
]

TrainedPart = Literal["all", "heads", "heads_on_features"]
LongTail = Literal["none", "logit_adjustment"]
Schedule = Literal["cosine", "tanh", "poly"]
KeptWeights = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A number of epochs at one photo size. Small sizes first: a CPU trains 128 px three times faster than 224."""

    photo_px: int
    epochs: int
    trains: TrainedPart = "all"
    """`heads` leaves the backbone as it is, which costs a third: new heads no longer pull pre-trained features about
    while they know nothing themselves (Kumar et al., ICLR 2022). `heads_on_features` computes the features of every
    photo once, unaugmented, and trains the heads on those: a linear probe."""

    def __post_init__(self) -> None:
        _require_types(self, prefix="stages.")
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
    """`imagenet`, `none`, `hf-hub:OWNER/NAME` for a repository in timm's layout, or the path of the backbone's
    safetensors file. The folder of a bundle: its backbone, and the heads' rows of all classes that are still there."""
    frozen_groups: int = 0
    """So many of the backbone's layer groups, counted from the photo (timm's coarse `group_matcher`; the stem is the
    first), stay as they were pre-trained. Early layers are general and, at full resolution, the dear ones."""
    lora_rank: int = 0
    """Above 0, the backbone's linear layers learn products of this rank beside their weights, and the rest of the
    backbone stays as it was pre-trained (Hu et al., ICLR 2022); a finished run has them added. For vision transformers
    and ConvNeXt; 4 to 16, with a `backbone_learning_rate` near 1e-3."""
    seed: int = 0
    batch_size: int = 32
    """Photos in one optimizer step, over all ranks and micro-batches. So that every photo comes once an epoch, what is
    left over is spread over the steps, a photo more in some."""
    head_learning_rate: float = 2e-3
    """Peak for the two new heads; AdamW, linear warm-up, then `schedule` to zero."""
    backbone_learning_rate: float = 6e-4
    """Peak for the pre-trained layers."""
    layer_decay: float = 1.0
    """Each layer group of the backbone learns at this times the rate of the next; 0.65 to 0.8 suit large backbones."""
    schedule: Schedule = "cosine"
    """As timm's scheduler of that name."""
    warmup_share: float = 0.05
    """Share of all steps."""
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    label_smoothing: float = 0.1
    brand_loss_weight: float = 0.5
    """Against 1 for the category loss."""
    outlier_exposure_weight: float = 0.0
    """Weight of a training photo labelled `out of scope`, whose target is all leaves alike (Hendrycks et al., ICLR
    2019, use 0.5). 0 refuses such labels in the train split."""
    inner_node_loss_weight: float = 0.0
    """Against 1 for the labelled category: weight of the mean loss of the categories above it, so that confusing two
    kinds of apple costs less than taking an apple for milk. Labels smoothed over all leaves do not know that."""
    long_tail: LongTail = "none"
    """`logit_adjustment` trains on logits + log class share, so that rare classes are judged as if they were as
    frequent as the others (Menon et al., ICLR 2021, eq. 10, tau = 1; the same as balanced softmax, Ren et al. 2020)."""
    balanced_sampling: float = 0.0
    """0 draws every photo once an epoch. Above, photos are drawn with replacement by class count ** -balanced_sampling:
    1 makes all classes equally frequent (Mahajan et al., ECCV 2018, use 0.5)."""
    distillation_weight: float = 0.0
    """Weight of the teacher's probabilities against the labels, in [0, 1]; `listing-vision distill`."""
    distillation_temperature: float = 2.0
    """Softens both answers (Hinton et al. 2015, section 2)."""
    mixup_alpha: float = 0.0
    """Parameter of the beta distribution of the mixing share (Zhang et al., ICLR 2018); 0 is off."""
    cutmix_alpha: float = 0.0
    """The same for CutMix (Yun et al., ICCV 2019); with both, a coin decides for each step."""
    brand_head: BrandHead = "linear"
    """`cosine` scores each brand by the angle between its weights and the photo's embedding, so that
    `listing-vision brand add` can give the finished model a further brand from a handful of photos (Qi et al., CVPR
    2018). The two answer brands alike: 94 % and 92-95 % of Grocery Store's val split, linear probes."""
    dropout: float = 0.2
    drop_path: float = 0.0
    """Stochastic depth (Huang et al., ECCV 2016), for backbones that have it."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: a third slower, and room for larger batches or photos."""
    smallest_crop: float = 0.35
    """Least share of a photo's area that a random crop keeps."""
    trivial_augment: bool = True
    """One random colour or geometry change a photo (Müller & Hutter, ICCV 2021)."""
    erasing_probability: float = 0.25
    """Random erasing (Zhong et al., AAAI 2020)."""
    flip_probability: float = 0.5
    """Mirroring; 0 where text matters more than variety."""
    ema_decay: float = 0.995
    """Decay of the averaged weights, which are evaluated and exported; warmed up as in timm's ModelEmaV3."""
    final_weights: KeptWeights = "last"
    """Which epoch's averaged weights the finished run has, and `export` takes: the last one's, or those that val judged
    best. Both are kept. The learning rate ends at zero, so that the last ones are seldom much worse, and a choice on
    val uses val up: certify on another split then."""
    early_stopping_epochs: int = 0
    """End after so many epochs without a better result on val; 0 never. Needs `final_weights = "best"`."""
    gradient_clip_norm: float = 5.0
    checkpoint_every_steps: int = 100

    def __post_init__(self) -> None:
        _require_types(self)
        _require(len(self.stages) > 0, "stages", self.stages, "give at least one [[stages]]")
        trained = [stage.trains for stage in self.stages]
        _require(
            "heads_on_features" not in trained[trained.index("all") :] if "all" in trained else True,
            "stages.trains",
            trained,
            "put stages that train heads_on_features before those that train all: features are of the first backbone",
        )
        _require(self.seed >= 0, "seed", self.seed, "use 0 or more")
        _require(32 <= self.input_px <= 1024, "input_px", self.input_px, "use 32..1024")
        _require(self.frozen_groups >= 0, "frozen_groups", self.frozen_groups, "use 0 or more")
        _require(self.lora_rank >= 0, "lora_rank", self.lora_rank, "use 0 (off) or more")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "batch norm needs at least 2")
        for name in ("head_learning_rate", "backbone_learning_rate", "gradient_clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "use a positive number")
        for name in ("mixup_alpha", "cutmix_alpha", "balanced_sampling"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "use 0 (off) or more")
        for name in (
            "warmup_share",
            "label_smoothing",
            "dropout",
            "drop_path",
            "erasing_probability",
            "flip_probability",
            "distillation_weight",
        ):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "use a share in 0..1")
        temperature = self.distillation_temperature
        _require(temperature >= 1, "distillation_temperature", temperature, "use 1 or more")
        _require(
            not (self.distillation_weight and "heads_on_features" in trained),
            "distillation_weight",
            self.distillation_weight,
            "a teacher answers photos, which a stage that trains heads_on_features has none of: leave such stages out",
        )
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "use a factor in (0, 1]")
        _require(0 < self.smallest_crop <= 1, "smallest_crop", self.smallest_crop, "use a share in (0, 1]")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "use 0 (off) to below 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "use 0 or more")
        for name in ("brand_loss_weight", "inner_node_loss_weight", "outlier_exposure_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "use 0 or more")
        _require(self.checkpoint_every_steps >= 1, "checkpoint_every_steps", self.checkpoint_every_steps, "use 1+")
        _require(self.early_stopping_epochs >= 0, "early_stopping_epochs", self.early_stopping_epochs, "use 0 or more")
        _require(
            self.final_weights == "best" or not self.early_stopping_epochs,
            "early_stopping_epochs",
            self.early_stopping_epochs,
            'the last weights of a run that ends early are none to keep: set final_weights = "best"',
        )

    @property
    def num_epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def stage_of_epoch(self, epoch: int) -> Stage:
        """The stage that an epoch, counted from 0, belongs to."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
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
        try:
            for name in raw:
                _require_known(name)
            return cls(**{**raw, "stages": _build_stages(raw.get("stages", ()))})
        except (RecipeError, TypeError) as error:
            raise RecipeError(f"{source}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class AboutRecipe:
    """What a recipe is for: the table `[about]` at the end of its file. It changes nothing that is learned."""

    data: str
    machine: Literal["cpu", "gpu"]
    time: str
    expected: str
    """Result, and on which data."""

    def __post_init__(self) -> None:
        _require_types(self)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe shipped with the package, by name, or one of the user's, by path.

    Args:
        name_or_path: a path ends in .toml.
        overrides: `FIELD=VALUE` with the value as in TOML, `stages.0.photo_px=160` for a stage, or `epochs=3` for the
            run, in which stages keep their shares. What the fields mean together is checked when all are set.

    Raises:
        RecipeError: not found, not TOML, or a wrong value; names the field, the value and the way out.
    """
    source = f"recipe {name_or_path}"
    raw = _parse(name_or_path)
    raw.pop("about", None)
    recipe = Recipe.from_dict(raw, source=source)
    return _override(recipe, overrides) if overrides else recipe


def read_about(name_or_path: str) -> AboutRecipe | None:
    """What `load_recipe` would load is for; None where it does not say.

    Raises:
        RecipeError: not found, not TOML, or a field of `[about]` is missing, unknown or of a wrong type.
    """
    about = _parse(name_or_path).get("about")
    try:
        return AboutRecipe(**about) if about else None
    except (RecipeError, TypeError) as error:
        raise RecipeError(f"recipe {name_or_path}, [about]: {error}") from error


def list_shipped_recipes() -> list[str]:
    """Names of the package's recipes."""
    shipped = resources.files("training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in shipped.iterdir() if entry.name.endswith(".toml"))


def read_recipe_text(name_or_path: str) -> str:
    """The file of a recipe.

    Raises:
        RecipeError: not found.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"no recipe at {path}")
        return path.read_text(encoding="utf-8")
    names = list_shipped_recipes()
    if name_or_path not in names:
        raise RecipeError(
            f"no recipe named {name_or_path!r}; shipped: {', '.join(names)}; or give a path that ends in .toml"
        )
    return (resources.files("training") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")


def _parse(name_or_path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_recipe_text(name_or_path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not TOML: {error}") from error


def _override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Set the fields in the given order, and check what they mean together only when all are set."""
    changes: dict[str, Any] = {}
    stages = recipe.stages
    for text in overrides:
        name, equals, written = text.partition("=")
        if not equals:
            raise RecipeError(f"--set {text}: give FIELD=VALUE, such as batch_size=64 or stages.0.photo_px=160")
        value = _parse_value(written)
        try:
            if name == "epochs":
                stages = _share_epochs(stages, value)
            elif in_stage := re.fullmatch(r"stages\.(\d+)\.(\w+)", name):
                stages = _override_stage(stages, int(in_stage[1]), in_stage[2], value)
            elif name == "stages":
                stages = _build_stages(value)
            else:
                _require_known(name)
                wrong = describe_wrong_type(Recipe, name, value)
                _require(wrong is None, name, value, wrong or "")
                changes[name] = value
        except (RecipeError, TypeError) as error:
            raise RecipeError(f"--set {text}: {error}") from error
    try:
        return replace(recipe, **changes, stages=stages)
    except RecipeError as error:
        raise RecipeError(f"{' '.join(f'--set {text}' for text in overrides)}: {error}") from None


def _override_stage(stages: tuple[Stage, ...], number: int, name: str, value: Any) -> tuple[Stage, ...]:
    known = [field.name for field in fields(Stage)]
    if number >= len(stages) or name not in known:
        raise RecipeError(
            f"no field 'stages.{number}.{name}'; there are stages.0 to stages.{len(stages) - 1}, each with "
            f"{', '.join(known)}"
        )
    return (*stages[:number], replace(stages[number], **{name: value}), *stages[number + 1 :])


def _build_stages(raw: Any) -> tuple[Stage, ...]:
    are_tables = isinstance(raw, list | tuple) and all(isinstance(stage, dict) for stage in raw)
    _require(are_tables, "stages", raw, "give a table [[stages]] for each, with photo_px and epochs")
    return tuple(Stage(**stage) for stage in raw)


def _parse_value(written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return written  # a string without its quotes, which a shell takes away


def _share_epochs(stages: tuple[Stage, ...], total: Any) -> tuple[Stage, ...]:
    """The stages with at least one epoch each, of so many in all."""
    is_enough = isinstance(total, int) and not isinstance(total, bool) and total >= len(stages)
    _require(is_enough, "epochs", total, f"give a whole number of at least {len(stages)}, one for each stage")
    num_epochs = sum(stage.epochs for stage in stages)
    shares: list[int] = []
    done = 0
    for stages_after, stage in zip(range(len(stages) - 1, -1, -1), stages, strict=True):
        done += stage.epochs
        end = min(round(done * total / num_epochs), total - stages_after)
        shares.append(max(1, end - sum(shares)))
    return tuple(replace(stage, epochs=epochs) for stage, epochs in zip(stages, shares, strict=True))


def _require_known(name: str) -> None:
    known = {field.name for field in fields(Recipe)}
    if name not in known:
        raise RecipeError(f"unknown field {name!r}; known: {', '.join(sorted(known))}")


def _require_types(settings: Recipe | Stage | AboutRecipe, *, prefix: str = "") -> None:
    if found := find_wrong_type(settings):
        name, way_out = found
        _require(False, prefix + name, getattr(settings, name), way_out)


def _require(ok: bool, name: str, value: object, way_out: str) -> None:
    if not ok:
        raise RecipeError(f"{name} = {value!r}: {way_out}")
