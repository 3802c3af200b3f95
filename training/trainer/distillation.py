"""A finished model as a teacher: the student learns from its logits for the same augmented photos.

Softened logits: Hinton, Vinyals & Dean 2015 (arXiv 1503.02531), section 2. The same crops and
mixing for teacher and student: Beyer et al., CVPR 2022, section 3.
"""

from pathlib import Path

import torch
from torch.nn import functional

from training.errors import RunError
from training.inference.evaluated_model import EvaluatedModel, load_evaluated_model
from training.run import Run
from vision.model import Outputs
from vision.runtime.files import compute_sha256
from vision.taxonomy import Taxonomy

__all__ = ["Teacher", "compute_distillation_losses"]


def compute_distillation_losses(logits: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """KL divergence of the student's softened distribution from the teacher's, times the temperature squared.

    The factor keeps the gradients at the scale of a hard label's loss for every temperature.

    Args:
        logits: (N, L) float, the student's.
        teacher: (N, L) float, the teacher's logits.
        temperature: 1 or more; larger values soften more.

    Returns:
        (N,) float, at least 0.
    """
    target = functional.log_softmax(teacher.float() / temperature, dim=1)
    predicted = functional.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(predicted, target, reduction="none", log_target=True).sum(dim=1)


class Teacher:
    """A network on one device that infers without gradients; its logits include the class frequencies of its
    training."""

    def __init__(self, model: EvaluatedModel, taxonomy: Taxonomy, device: torch.device, *, version: str) -> None:
        """Raises RunError if the labels of the model are not those of the taxonomy."""
        if (model.taxonomy.leaf_ids, model.taxonomy.brand_labels) != (taxonomy.leaf_ids, taxonomy.brand_labels):
            raise RunError(
                f"the teacher, {model.name}, has the taxonomy {model.taxonomy.version}, whose leaves or brands "
                f"are not those of {taxonomy.version}; train a teacher on this manifest first"
            )
        self.version = version
        self._side_px = model.preprocessing.input_px
        self._network = model.load_network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks the device + memory_format form
        self._category_log_prior = _create_prior(model.calibration.category_log_prior, device)
        self._brand_log_prior = _create_prior(model.calibration.brand_log_prior, device)

    @classmethod
    def load(cls, folder: Path, taxonomy: Taxonomy, device: torch.device) -> "Teacher":
        """Load a teacher from a bundle or the folder of a finished run.

        Raises:
            BundleError: the folder is neither, or the bundle is incomplete or altered.
            RunError: the run has not finished, it was trained with adjusted class frequencies, or its labels differ.
        """
        if (folder / "run.json").is_file():
            recipe = Run(folder).recipe
            if recipe.long_tail != "none" or recipe.balanced_sampling:
                raise RunError(
                    f"{folder} was trained with adjusted class frequencies; export it and give the bundle, which "
                    "holds their correction"
                )
        model = load_evaluated_model(folder)
        version = compute_sha256(folder / "weights.safetensors")[:12]
        return cls(model, taxonomy, device, version=version)

    @torch.no_grad()
    def infer(self, photos_nhwc: torch.Tensor) -> Outputs:
        """Outputs for (N, H, W, 3) photos in 0…255 of any size; they are resized to the input size of the teacher."""
        photos = photos_nhwc
        if photos.shape[1:3] != (self._side_px, self._side_px):
            resized = functional.interpolate(
                photos.permute(0, 3, 1, 2).float(), size=(self._side_px,) * 2, mode="bicubic", antialias=True
            )
            photos = resized.clamp(0, 255).permute(0, 2, 3, 1)
        outputs: Outputs = self._network(photos)
        return Outputs(
            outputs.category_logits + self._category_log_prior,
            outputs.brand_logits + self._brand_log_prior,
            outputs.embedding,
            outputs.scope_score,
        )


def _create_prior(log_prior: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(log_prior, device=device) if log_prior else torch.zeros((), device=device)
