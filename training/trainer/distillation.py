"""A finished model as teacher: a student learns from what it answers to the very photos that the student sees.

Softened answers: Hinton, Vinyals & Dean 2015 (arXiv 1503.02531), section 2. The same crop, distorted and mixed
alike, for both: Beyer et al., CVPR 2022, section 3.
"""

from pathlib import Path

import torch
from torch.nn import functional

from training.errors import RunError
from training.inference.evaluated_model import JudgedModel, load_judged
from training.run import Run
from vision.model import Outputs
from vision.taxonomy import Taxonomy

__all__ = ["Teacher", "distillation_losses"]


from vision.runtime.files import sha256_of


def distillation_losses(logits: torch.Tensor, taught: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """KL divergence of the student's softened answer from the teacher's, times the temperature squared.

    The factor keeps the gradients as large as those of a hard label's loss, whatever the temperature.

    Args:
        logits: (N, L) float, the student's.
        taught: (N, L) float, the teacher's.
        temperature: at least 1 softens.

    Returns:
        (N,) float, at least 0.
    """
    wanted = functional.log_softmax(taught.float() / temperature, dim=1)
    answered = functional.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(answered, wanted, reduction="none", log_target=True).sum(dim=1)


class Teacher:
    """Answers photos with the natural frequencies of its training in, on one device, without gradients."""

    def __init__(self, model: JudgedModel, taxonomy: Taxonomy, device: torch.device, *, version: str) -> None:
        """Raises RunError: its labels are not the taxonomy's."""
        if (model.taxonomy.leaf_ids, model.taxonomy.brand_labels) != (taxonomy.leaf_ids, taxonomy.brand_labels):
            raise RunError(
                f"the teacher, {model.name}, answers with taxonomy {model.taxonomy.version}, whose leaves or brands "
                f"are not those of {taxonomy.version}; train a teacher on this manifest first"
            )
        self.version = version
        self._side_px = model.preprocessing.input_px
        self._network = model.trained().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks the device + memory_format form
        self._category_log_prior = _prior(model.calibration.category_log_prior, device)
        self._brand_log_prior = _prior(model.calibration.brand_log_prior, device)

    @classmethod
    def load(cls, folder: Path, taxonomy: Taxonomy, device: torch.device) -> "Teacher":
        """A bundle, or the folder of a finished run.

        Raises:
            BundleError: the folder is neither, or the bundle is incomplete or altered.
            RunError: the run has not finished, its frequencies are not the natural ones, or its labels differ.
        """
        if (folder / "run.json").is_file():
            recipe = Run(folder).recipe
            if recipe.long_tail != "none" or recipe.balanced_sampling:
                raise RunError(
                    f"{folder} was not trained on classes as frequent as they are; export it, and give the bundle, "
                    "which holds what to correct"
                )
        model = load_judged(folder)
        version = sha256_of(folder / "weights.safetensors")[:12]
        return cls(model, taxonomy, device, version=version)

    @torch.no_grad()
    def answer(self, photos_nhwc: torch.Tensor) -> Outputs:
        """Its outputs for (N, H, W, 3) photos in 0…255 of any size, which are brought to its own."""
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
        )


def _prior(log_prior: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(log_prior, device=device) if log_prior else torch.zeros((), device=device)
