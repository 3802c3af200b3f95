"""The trained network of a bundle, built again from its manifest and `weights.safetensors`; nothing is unpickled."""

import safetensors.torch

from vision.bundle import Bundle
from vision.errors import BundleError
from vision.model import ListingClassifier, ModelSpec

__all__ = ["load_bundle_model"]


def load_bundle_model(bundle: Bundle) -> ListingClassifier:
    """On the CPU, in evaluation mode.

    Raises:
        BundleError: this version's timm builds another network under the backbone's name.
    """
    info = bundle.info
    model = ListingClassifier(
        ModelSpec(
            backbone=info.backbone,
            num_categories=info.num_categories,
            num_brands=info.num_brands,
            mean=info.mean,
            std=info.std,
            brand_head=info.brand_head,
        )
    )
    try:
        model.load_weights(safetensors.torch.load_file(bundle.folder / "weights.safetensors"))
    except RuntimeError as error:
        raise BundleError(
            f"bundle {bundle.folder}: its weights do not fit the network built from its manifest ({error}); use the "
            f"versions that it was trained with: {info.training.get('versions')}"
        ) from error
    return model.eval()
