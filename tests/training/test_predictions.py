import pytest
from PIL import Image

from tests.helpers import encoded
from training.predictions import predict
from vision.engine import OnnxEngine
from vision.errors import ManifestError
from vision.manifest import Manifest


def test_unusable_photos_are_counted_and_the_rest_judged(bundle, drawn, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    rows = Manifest.load(str(drawn / "manifest.parquet")).where_split("test").table.to_pylist()
    rows = [{**row, "photo": f"{drawn}/{row['photo']}"} for row in rows]
    rows.insert(2, {**rows[0], "photo": str(tmp_path / "cut.jpg")})
    infer = OnnxEngine(bundle).infer
    predictions = predict(Manifest.from_rows(rows, ""), bundle.taxonomy, bundle.info.preprocessing, infer, batch_size=5)
    assert len(predictions.category_logits) == len(rows) - 1
    assert len(predictions.unusable) == 1
    assert "cut.jpg" in predictions.unusable[0]
    with pytest.raises(ManifestError, match="no photo of the manifest can be used"):
        predict(Manifest.from_rows(rows[2:3], ""), bundle.taxonomy, bundle.info.preprocessing, infer)


def test_size_and_brightness_of_each_photo_are_kept(bundle, tmp_path):
    rows = []
    for name, size_px, grey in (("tall", (300, 700), 200), ("small", (90, 70), 10)):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", size_px, (grey,) * 3), "PNG"))
        rows.append({"listing_id": name, "photo": f"{name}.png"})
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    rows.insert(1, {"listing_id": "cut", "photo": "cut.jpg"})
    manifest = Manifest.from_rows(rows, str(tmp_path))
    predictions = predict(manifest, bundle.taxonomy, bundle.info.preprocessing, OnnxEngine(bundle).infer)
    assert predictions.short_sides_px.tolist() == [300, 70]
    assert predictions.brightness == pytest.approx([200, 10])
