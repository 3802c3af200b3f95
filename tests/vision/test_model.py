import pytest
import timm
import torch

from vision.model import ListingClassifier, ModelSpec

SPEC = ModelSpec(
    backbone="tf_efficientnet_lite0", num_categories=5, num_brands=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def test_normalisation_is_inside_and_outputs_have_their_shapes():
    torch.manual_seed(0)
    backbone = timm.create_model(SPEC.backbone, num_classes=0)
    model = ListingClassifier(SPEC, backbone).eval()
    photos = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = model(photos)
        normalised = (photos.double() / 255 - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
        by_hand = backbone(normalised.permute(0, 3, 1, 2).float())
    assert outputs.category_logits.shape == (3, 5)
    assert outputs.brand_logits.shape == (3, 3)
    torch.testing.assert_close(outputs.embedding, by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "width"),
    [
        ("resnet10t", 512),
        ("mobilenetv3_small_050", 1024),
        ("mobilenetv4_conv_small_035", 1280),
        ("vit_tiny_patch16_224", 192),
    ],
)
def test_timm_backbones_fit_at_any_photo_size(backbone, width):
    spec = ModelSpec(backbone=backbone, num_categories=2, num_brands=1, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = ListingClassifier(spec).eval()
    for side in (64, 96):
        with torch.inference_mode():
            outputs = model(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        assert outputs.embedding.shape == (1, width)
        assert outputs.category_logits.shape == (1, 2)
