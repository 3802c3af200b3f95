"""What learns: the model, its averaged copy, its optimizer, and one step of them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import RecipeError
from training.inference.initial_heads import CarriedHeads, carry_over_heads, load_initial_bundle
from training.inference.lora import add_low_rank, merge_low_rank
from training.inference.pretrained import check_photo_sizes, create_backbone
from training.recipe import Recipe, Stage
from training.trainer.distillation import Teacher
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from training.trainer.loading.augmentation import distort_batch
from training.trainer.loading.dataloader import Batch
from training.trainer.loading.sampler import compute_sampling_weights
from training.trainer.losses import ListingLoss, NumLabelled
from training.trainer.mixup import mix_photos
from training.trainer.optimizer import create_optimizer, create_scheduler, find_frozen_modules, freeze_groups
from vision.bundle import Bundle
from vision.manifest import Labels
from vision.model import ListingClassifier, ModelSpec, Outputs
from vision.runtime.lifetime import keep_freed_memory
from vision.taxonomy import Taxonomy

__all__ = ["StepResult", "TrainStep"]


class StepResult(NamedTuple):
    """On its way from the device, so that asking for it later does not hold up the next step."""

    figures: torch.Tensor
    """(2,) float32 on the CPU: loss and gradient norm."""
    transfer_done: torch.cuda.Event | None

    def read(self) -> tuple[float, float]:
        """This rank's part of the step's loss (the ranks' mean is the loss), and the norm of all ranks' gradients."""
        if self.transfer_done:
            self.transfer_done.synchronize()
        return float(self.figures[0]), float(self.figures[1])


class TrainStep:
    """Built alike on every rank; `step` keeps the ranks' weights equal."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        taxonomy: Taxonomy,
        train_labels: Labels,
        machine: Machine,
        ranks: Ranks,
        teacher: Teacher | None = None,
    ) -> None:
        self._recipe, self._ranks = recipe, ranks
        _require_matching_teacher(recipe, teacher)
        self._teacher = teacher
        self._device = ranks.device
        if self._device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(recipe.seed)
        initial = load_initial_bundle(recipe)
        backbone = create_backbone(recipe.backbone, recipe.weights, drop_path=recipe.drop_path)
        check_photo_sizes(backbone, recipe.backbone, [recipe.input_px, *(stage.photo_px for stage in recipe.stages)])
        if recipe.activation_checkpointing:
            _enable_activation_checkpointing(backbone, recipe.backbone)
        self.spec = _create_spec(recipe, backbone, taxonomy, initial)
        if recipe.lora_rank:
            add_low_rank(backbone, recipe.lora_rank, recipe.backbone)
        model = ListingClassifier(self.spec, backbone, dropout=recipe.dropout)
        versions = {
            "teacher": teacher.version if teacher else None,
            "weights_version": initial.info.model_version if initial else None,
        }
        self.models = {name: version for name, version in versions.items() if version}
        """Model versions of what it learns from and begins with, where there is such."""
        self.carried_heads: CarriedHeads | None = carry_over_heads(model, initial, taxonomy) if initial else None
        freeze_groups(model.backbone, recipe.frozen_groups)
        self._trainable_backbone = [p for p in model.backbone.parameters() if p.requires_grad]
        self.model = model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks the device + memory_format form
        self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True)
        self.optimizer = create_optimizer(self.model, recipe)
        self._amp_dtype = machine.choose_amp_dtype(self._device)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=self._amp_dtype is torch.float16)
        self._compiles = machine.compiles(self._device)
        self._distorts = machine.augments_on_device(self._device)
        self._loss = ListingLoss.build(
            taxonomy,
            train_labels,
            self._device,
            adjust_logits=recipe.long_tail == "logit_adjustment",
            weights=compute_sampling_weights(train_labels.category_nodes, recipe.balanced_sampling),
            brand_weight=recipe.brand_loss_weight,
            label_smoothing=recipe.label_smoothing,
            inner_node_weight=recipe.inner_node_loss_weight,
            outlier_weight=recipe.outlier_exposure_weight,
        )
        self._configured_for = ""
        """What the stage trains that `_forward` was made for."""
        self._scheduler: Scheduler | None = None
        self._forward: nn.Module = self.model

    def start_schedule(self, num_steps: int) -> None:
        """Let the learning rates follow the recipe's schedule over so many steps."""
        self._scheduler = create_scheduler(self.optimizer, self._recipe, num_steps=num_steps)

    def run(self, step: int, stage: Stage, micro_batches: Sequence[Batch], num_labelled: NumLabelled) -> StepResult:
        """One optimizer step over this rank's micro-batches.

        A loss or gradient that is not finite changes no weight: the optimizer leaves the step out on the device, and
        the caller sees it in the result.

        Args:
            step: counted from 0; decides learning rates and everything random.
            stage: of the recipe.
            micro_batches: of this rank.
            num_labelled: in the whole step, over all ranks.
        """
        self._configure_stage(stage)
        if self._scheduler:
            self._scheduler.step_update(step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for index, batch in enumerate(micro_batches):
            # Dropout and mixing are drawn from the step's own seed, so that a resumed run draws the same.
            seed = self._recipe.seed * 1_000_003 + step + self._ranks.rank * 15_485_863 + index * 32_452_843
            torch.manual_seed(seed)
            with self._no_gradient_sync(index < len(micro_batches) - 1):
                loss = self._compute_loss(batch, stage, seed, num_labelled)
                # Ranks average their gradients; their losses are parts that add up.
                self.scaler.scale(loss * self._ranks.world_size).backward()
            total += loss.detach() * self._ranks.world_size
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._recipe.gradient_clip_norm)
        if not self.scaler.is_enabled():
            # What GradScaler sets for a fused optimizer, which then skips the step without asking the host.
            self.optimizer.found_inf = (~(torch.isfinite(norm) & torch.isfinite(total))).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model, step=step + 1)
        figures = torch.stack([total, norm]).to("cpu", non_blocking=True)
        transfer_done = None
        if self._device.type == "cuda":
            transfer_done = torch.cuda.Event()
            transfer_done.record()
        return StepResult(figures, transfer_done)

    @torch.no_grad()
    def infer_averaged(self, inputs: torch.Tensor, *, on_features: bool = False) -> Outputs:
        """The averaged weights' outputs, on the device.

        Args:
            inputs: (N, S, S, 3) uint8 photos.
            on_features: `inputs` are (N, D) features of the backbone instead.
        """
        model: Any = self.ema.module.eval()
        outputs: Outputs = (model.apply_heads if on_features else model)(inputs.to(self._device, non_blocking=True))
        return outputs

    def get_learning_rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def export_tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint must hold: `model.*`, `ema.*`, `optimizer.*`."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        for parameter, moments in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[parameter]}.{k}": v for k, v in moments.items()}
        return tensors

    def export_averaged(self) -> dict[str, torch.Tensor]:
        """The averaged weights, as a network without `lora_rank` has them."""
        return merge_low_rank(self.ema.module)

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.model.load_state_dict(_strip_prefix(tensors, "model."))
        self.ema.module.load_state_dict(_strip_prefix(tensors, "ema."))
        for name, parameter in self.model.named_parameters():
            moments = _strip_prefix(tensors, f"optimizer.{name}.")
            if moments:
                # A fused optimizer keeps its step count beside the moments, on the device.
                self.optimizer.state[parameter] = {
                    k: v.to(parameter.device) if k == "step" else torch.empty_like(parameter).copy_(v)
                    for k, v in moments.items()
                }

    def _compute_loss(self, batch: Batch, stage: Stage, seed: int, num_labelled: NumLabelled) -> torch.Tensor:
        inputs = batch.photos_nhwc.to(self._device, non_blocking=True)
        category_nodes = batch.category_nodes.to(self._device, non_blocking=True)
        brands = batch.brands.to(self._device, non_blocking=True)
        mix = None
        if stage.trains != "heads_on_features":
            if self._distorts:
                distorted = distort_batch(inputs.permute(0, 3, 1, 2), self._recipe, seeds=batch.seeds.tolist())
                inputs = distorted.permute(0, 2, 3, 1)
            inputs, mix = mix_photos(inputs, self._recipe, seed=seed)
        with torch.autocast(self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
            outputs: Outputs = self._forward(inputs)
            teacher_outputs = self._teacher.infer(inputs) if self._teacher else None
        loss = self._loss(outputs, category_nodes, brands, num_labelled=num_labelled, mix=mix)
        if teacher_outputs is None:
            return loss
        weight = self._recipe.distillation_weight
        distilled = self._loss.distill(
            outputs, teacher_outputs, temperature=self._recipe.distillation_temperature, num_labelled=num_labelled
        )
        return (1 - weight) * loss + weight * distilled

    def _configure_stage(self, stage: Stage) -> None:
        if stage.trains != self._configured_for:
            self._configured_for = stage.trains
            for parameter in self._trainable_backbone:
                parameter.requires_grad_(stage.trains == "all")
            self._forward = _Heads(self.model) if stage.trains == "heads_on_features" else self.model
            if self._ranks.world_size > 1:
                # DDP notes at its start which parameters learn.
                self._forward = DistributedDataParallel(self._forward, gradient_as_bucket_view=True)
            if self._compiles:
                self._forward.compile()
            self.model.train()
            for module in find_frozen_modules(self.model):
                module.eval()

    def _no_gradient_sync(self, wanted: bool) -> AbstractContextManager[None]:
        if wanted and isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()


class _Heads(nn.Module):
    """The model from features on, for DDP, which sees what goes through `forward`."""

    def __init__(self, model: ListingClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: torch.Tensor) -> Outputs:
        return self.model.apply_heads(features)


def _create_spec(recipe: Recipe, backbone: nn.Module, taxonomy: Taxonomy, initial: Bundle | None) -> ModelSpec:
    cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", {})
    if initial:  # its photos may have been normalised differently from timm's default
        cfg = {"mean": initial.info.mean, "std": initial.info.std}
    return ModelSpec(
        backbone=recipe.backbone,
        num_categories=len(taxonomy.leaf_ids),
        num_brands=len(taxonomy.brand_labels),
        mean=tuple(cfg.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(cfg.get("std", (0.5, 0.5, 0.5))),
        brand_head=recipe.brand_head,
    )


def _require_matching_teacher(recipe: Recipe, teacher: Teacher | None) -> None:
    if (recipe.distillation_weight > 0) != (teacher is not None):
        raise RecipeError(
            f"distillation_weight = {recipe.distillation_weight:g}, and {'no' if teacher is None else 'a'} teacher; "
            "`listing-vision distill` takes a teacher and a recipe with a weight above 0, `train` neither"
        )


def _enable_activation_checkpointing(backbone: nn.Module, name: str) -> None:
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's
    except (AttributeError, AssertionError) as error:
        raise RecipeError(f"activation_checkpointing: {name} cannot do it; set it to false") from error


def _strip_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
