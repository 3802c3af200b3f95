import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from listing_vision.cli import app
from tests.support.helpers import create_small_taxonomy, encode_image, train_run
from training.export.add_brand import add_brand, compute_brand_shifts, extend_taxonomy, imprint_brand
from training.export.export import export_bundle
from training.inference.forward import onnx_forward
from training.recipe import Recipe, Stage
from vision.bundle import certificate_binding, load_bundle, seal_bundle
from vision.calibration import FieldGuarantee
from vision.errors import BundleError, ListingVisionError, ManifestError, TaxonomyError
from vision.images import prepare_photo
from vision.manifest import Manifest
from vision.model import ListingClassifier, ModelSpec

RECIPE = Recipe(
    stages=(Stage(photo_px=64, epochs=30, trains="heads_on_features"),),
    input_px=64,
    batch_size=16,
    backbone="test_efficientnet",
    weights="none",
    brand_head="cosine",
    head_learning_rate=1e-2,
    ema_decay=0.9,
)
SPEC = ModelSpec(
    backbone="test_efficientnet",
    num_categories=2,
    num_brands=4,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    brand_head="cosine",
)


def create_new_brand_photo(number):
    """Pink stripes on green, which no drawn product looks like."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 40, (80, 80, 3)) + np.array([0, 120, 30])
    pixels[rng.integers(4) :: 4] = (230, 20, 160)
    return encode_image(Image.fromarray(pixels.astype(np.uint8)), "PNG")


PHOTOS = {f"{number}.png": create_new_brand_photo(number) for number in range(6)}


@pytest.fixture(scope="module")
def cosine_bundle(synthetic_dataset, tmp_path_factory):
    """With a promise for every field, as a model of more listings would have."""
    folder = tmp_path_factory.mktemp("cosine")
    made = export_bundle(train_run(folder / "run", synthetic_dataset, RECIPE), folder / "bundle", model_name="small")
    promised = tuple(
        dataclasses.replace(field, threshold=0.5, num_filled=20, uncertified_reason="")
        for field in made.calibration.fields
    )
    assert isinstance(promised[0], FieldGuarantee)
    return dataclasses.replace(made, calibration=dataclasses.replace(made.calibration, fields=promised))


@pytest.fixture(scope="module")
def bundle_with_brand(cosine_bundle, tmp_path_factory):
    return add_brand(cosine_bundle, PHOTOS, name="Öko Pink", output=tmp_path_factory.mktemp("added") / "bundle")


def logits(bundle, photos):
    return onnx_forward(bundle.onnx_path)(np.stack([prepare_photo(data, bundle.info.preprocessing) for data in photos]))


def sample_clusters(num_each, *, seed, num_clusters=5, num_features=256):
    """Embeddings as pooled activations are: positive, with a large part that all have in common."""
    places = np.random.default_rng(0).normal(0, 0.35, (num_clusters, num_features))
    places[1:] = -places[:1] + 0.4 * places[1:]  # brands in like packages, and what has none
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_clusters), num_each)
    noise = rng.normal(0, 0.35, (len(labels), num_features))
    return torch.tensor(np.maximum(3 + places[labels] + noise, 0), dtype=torch.float32), torch.tensor(labels)


@pytest.fixture(scope="module")
def train_brand_head():
    """A model whose brand head knows the first four clusters of embeddings."""
    torch.manual_seed(0)
    model = ListingClassifier(SPEC).train()
    embeddings, labels = sample_clusters(40, seed=1)
    embeddings, labels = embeddings[labels < 4], labels[labels < 4]
    optimizer = torch.optim.AdamW(model.brand_head.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.brand_head(embeddings), labels).backward()
        optimizer.step()
    return model.eval()


def test_an_imprinted_brand_is_known_and_leaves_the_others_theirs(train_brand_head):
    shots, labels = sample_clusters(5, seed=2)
    larger = imprint_brand(train_brand_head, shots[labels == 4])
    seen, truth = sample_clusters(100, seed=3)
    with torch.inference_mode():
        before = train_brand_head.brand_head(seen).argmax(dim=1)
        after = larger.brand_head(seen).argmax(dim=1)
    known = truth < 4
    assert (before == truth)[known].float().mean() > 0.95
    assert (after == truth)[~known].float().mean() > 0.5
    # 0.88 without the bias, 0.29 without the standardisation.
    assert (after == before)[known].float().mean() > 0.97


def test_what_is_answered_as_unknown_has_not_won(train_brand_head):
    shots, labels = sample_clusters(8, seed=2)
    shots = shots[labels == 4]
    free = imprint_brand(train_brand_head, shots).brand_head(shots)[:, 4]
    limit = free.max().item() + 0.5
    held = imprint_brand(train_brand_head, shots, unknown_below=limit).brand_head(shots)[:, 4]
    assert (held >= limit).float().mean() >= 0.75
    assert (free >= limit).sum() == 0


def test_listings_keep_their_answers_or_get_the_new_one(bundle_with_brand, cosine_bundle, synthetic_dataset):
    val = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("val")
    shifts = compute_brand_shifts(cosine_bundle, bundle_with_brand.bundle, val)
    assert sum(shift.num_listings for shift in shifts) == 30
    assert {shift.label for shift in shifts} >= {"not known", cosine_bundle.taxonomy.no_brand}
    for shift in shifts:
        if shift.label != "not known":
            num_lost = shift.num_moved_to_new + shift.num_changed_otherwise
            assert shift.num_right_before - num_lost <= shift.num_right_after <= shift.num_right_before


def test_a_listing_of_the_new_brand_shows_as_one_that_is_right_now(bundle_with_brand, cosine_bundle, tmp_path):
    rows = []
    for number, (name, data) in enumerate(PHOTOS.items()):
        (tmp_path / name).write_bytes(data)
        rows.append({"listing_id": str(number), "photo": name, "brand": "öko pink" if number else ""})
    new, unknown = compute_brand_shifts(
        cosine_bundle, bundle_with_brand.bundle, Manifest.from_rows(rows, str(tmp_path))
    )
    assert (new.label, new.num_listings, new.num_right_before) == ("Öko Pink", 5, 0)
    assert new.num_right_after == new.num_moved_to_new >= 3
    assert (unknown.label, unknown.num_listings) == ("not known", 1)


def test_all_but_the_new_brand_is_bit_equal(bundle_with_brand, cosine_bundle):
    photos = [create_new_brand_photo(number) for number in range(3)]
    before, after = logits(cosine_bundle, photos), logits(bundle_with_brand.bundle, photos)
    np.testing.assert_array_equal(before.category, after.category)
    np.testing.assert_array_equal(before.embedding, after.embedding)
    np.testing.assert_allclose(before.brand, after.brand[:, :-1], atol=1e-5)
    assert bundle_with_brand.categories_equal


def test_the_new_bundle_is_another_model_of_another_taxonomy(bundle_with_brand, cosine_bundle):
    info, source = bundle_with_brand.bundle.info, cosine_bundle.info
    assert info.model_version != source.model_version
    assert info.num_brands == source.num_brands + 1
    assert info.taxonomy_version == f"{source.taxonomy_version}+öko-pink"
    assert bundle_with_brand.bundle.taxonomy.brands[:-1] == cosine_bundle.taxonomy.brands
    assert info.parity["onnx"]["answers_agreeing"] == info.parity["torchscript"]["answers_agreeing"] == 1
    assert info.training["brands_added"] == [
        {"id": "öko-pink", "name": "Öko Pink", "num_photos": 6, "to_version": source.model_version}
    ]
    np.testing.assert_array_equal(bundle_with_brand.bundle.golden.photos_nhwc, cosine_bundle.golden.photos_nhwc)


def test_promises_for_categories_go_over_and_that_for_the_brand_is_void(bundle_with_brand, cosine_bundle):
    calibration = load_bundle(bundle_with_brand.bundle.folder).calibration
    *categories, brand = calibration.fields
    assert tuple(categories) == cosine_bundle.calibration.fields[:-1]
    assert brand.threshold is None
    assert brand.uncertified_reason == "brand Öko Pink was added since calibration; run `listing-vision calibrate`"
    assert (
        calibration.certifies.items()
        >= certificate_binding(bundle_with_brand.bundle.info, bundle_with_brand.bundle.sha256).items()
    )
    assert calibration.certifies["split"] == cosine_bundle.calibration.certifies["split"]


def test_every_promise_is_void_where_category_logits_moved(cosine_bundle, bundle, tmp_path):
    folder = shutil.copytree(cosine_bundle.folder, tmp_path / "source")
    # As if the exporter of today made another graph of the same weights.
    shutil.copy(bundle.onnx_path, folder / "model.onnx")
    moved = add_brand(dataclasses.replace(cosine_bundle, folder=folder), PHOTOS, name="Pink", output=tmp_path / "moved")
    assert not moved.categories_equal
    assert all("brand Pink was added" in field.uncertified_reason for field in moved.bundle.calibration.fields)


def test_imprinted_weights_are_the_mean_direction():
    torch.manual_seed(0)
    model = ListingClassifier(SPEC).eval()
    head = model.brand_head
    head.running_mean.normal_()
    head.running_var.uniform_(0.5, 2)
    embeddings = torch.randn(8, head.weight.shape[1]) * 0.3 + torch.randn(head.weight.shape[1])
    larger = imprint_brand(model, embeddings)
    standard = (embeddings - head.running_mean) / (head.running_var + 1e-5).sqrt()
    mean = (standard / standard.norm(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(larger.brand_head.weight[4], mean / mean.norm())
    assert torch.equal(larger.brand_head.weight[:4], head.weight)
    assert torch.equal(larger.brand_head.bias[:4], head.bias)
    assert larger.brand_head.bias[4] <= 0
    won = (larger.apply_heads(embeddings).brand_logits.argmax(dim=1) == 4).float().mean()
    assert won >= 0.75


def test_a_linear_head_is_refused_with_the_way_out(bundle, tmp_path):
    with pytest.raises(BundleError, match='brand_head = "cosine" in the recipe'):
        add_brand(bundle, PHOTOS, name="Pink", output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["Acme", "acme corp", "ZETA", "no brand", "other brand"])
def test_a_known_name_is_refused(name):
    with pytest.raises(TaxonomyError, match="is known already"):
        extend_taxonomy(create_small_taxonomy(), name)


def test_names_that_cannot_stand_are_refused():
    with pytest.raises(TaxonomyError, match="no character that an id could be made from"):
        extend_taxonomy(create_small_taxonomy(), " ")
    with pytest.raises(TaxonomyError, match="'Acme' is known already"):
        extend_taxonomy(create_small_taxonomy(), "New", aliases=("Acme",))


def test_photos_that_cannot_be_used_are_all_named(cosine_bundle, tmp_path):
    def refused(photos, error, match):
        with pytest.raises(error, match=match):
            add_brand(cosine_bundle, photos, name="Pink", output=tmp_path / "new")

    refused(dict(list(PHOTOS.items())[:2]), ListingVisionError, "2 photos of the brand are too few; give at least 3")
    hostile = {**PHOTOS, "empty.jpg": b"", "twice.png": PHOTOS["0.png"]}
    refused(hostile, ManifestError, r"empty\.jpg: 0 bytes[\s\S]*twice\.png: the same photo as 0\.png")
    (tmp_path / "new").mkdir()
    refused(PHOTOS, BundleError, "bundles are never overwritten")


def test_the_verb_adds_a_second_brand(bundle_with_brand, synthetic_dataset, tmp_path):
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    for number, path in enumerate(paths):
        path.write_bytes(encode_image(Image.effect_noise((70, 70), 20 + number)))
    words = ["brand", "add", "--bundle", bundle_with_brand.bundle.folder, "--name", "Noise"]
    words += ["--output", tmp_path / "new", "--manifest", synthetic_dataset / "manifest.parquet", *paths]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    assert "brand Noise (noise) imprinted from 3 photos" in done.stdout
    assert "category logits are bit-equal" in done.stdout
    assert "of 30 listings, " in done.stdout
    again = load_bundle(tmp_path / "new")
    assert [brand.id for brand in again.taxonomy.brands[-2:]] == ["öko-pink", "noise"]
    assert len(again.info.training["brands_added"]) == 2


def test_a_compiled_network_is_compiled_again(cosine_bundle, tmp_path, monkeypatch):
    folder = shutil.copytree(cosine_bundle.folder, tmp_path / "compiled")
    (folder / "model.pt2").write_bytes(b"of the old brands")
    seal_bundle(folder, cosine_bundle.info)

    def refuse(model, output, *, pt2, **others):
        raise ListingVisionError(f"pt2={pt2} for {model.spec.num_brands} brands")

    monkeypatch.setattr("training.export.add_brand.build_bundle", refuse)
    with pytest.raises(ListingVisionError, match=f"pt2=True for {cosine_bundle.info.num_brands + 1} brands"):
        add_brand(load_bundle(folder), PHOTOS, name="Öko Pink", output=tmp_path / "new")
