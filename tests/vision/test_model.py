from dataclasses import replace

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


def cosine_classifier():
    torch.manual_seed(0)
    return ListingClassifier(replace(SPEC, backbone="test_efficientnet", brand_head="cosine"))


def test_a_cosine_head_scores_standardised_angles():
    head = cosine_classifier().brand_head.eval()
    with torch.no_grad():
        head.running_mean.normal_()
        head.running_var.uniform_(0.5, 2)
        head.bias.normal_()
    embeddings = torch.randn(7, head.weight.shape[1])
    x = (embeddings.double() - head.running_mean) / (head.running_var.double() + 1e-5).sqrt()
    w = head.weight.double()
    cosines = (x @ w.T) / x.norm(dim=1, keepdim=True) / w.norm(dim=1)
    torch.testing.assert_close(head(embeddings).double(), 16 * cosines + head.bias, atol=1e-4, rtol=1e-4)


def test_the_length_of_weights_changes_no_answer():
    head = cosine_classifier().brand_head.eval()
    embeddings = torch.randn(4, head.weight.shape[1])
    before = head(embeddings)
    with torch.no_grad():
        head.weight *= torch.tensor([[0.1], [1.0], [30.0]])
    torch.testing.assert_close(head(embeddings), before)


def test_a_cosine_head_learns_the_statistics_and_takes_a_single_photo():
    head = cosine_classifier().brand_head.train()
    for _ in range(100):
        head(3 + 2 * torch.randn(64, head.weight.shape[1]))
    torch.testing.assert_close(head.running_mean.mean(), torch.tensor(3.0), atol=0.1, rtol=0)
    torch.testing.assert_close(head.running_var.mean(), torch.tensor(4.0), atol=0.3, rtol=0)
    assert head(torch.randn(1, head.weight.shape[1])).isfinite().all()


def test_a_network_of_one_head_takes_no_weights_of_the_other():
    linear = ListingClassifier(replace(SPEC, backbone="test_efficientnet"))
    assert linear.spec.brand_head == "linear"
    with pytest.raises(RuntimeError, match="brand_head"):
        cosine_classifier().load_state_dict(linear.state_dict())
