import numpy as np
import pytest
from PIL import Image

from tests.support.helpers import encode_image
from training.inference.predictions import predict
from vision.engine import Logits, OnnxEngine
from vision.errors import ManifestError, PhotoTruncated
from vision.images import prepare_photo
from vision.manifest import Manifest
from vision.photo_files import read_photo


def test_unusable_photos_are_counted_and_the_rest_judged(bundle, synthetic_dataset, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test").table.to_pylist()
    rows = [{**row, "photo": f"{synthetic_dataset}/{row['photo']}"} for row in rows]
    rows.insert(2, {**rows[0], "photo": str(tmp_path / "cut.jpg")})
    infer = OnnxEngine(bundle).infer
    predictions = predict(Manifest.from_rows(rows, ""), bundle.taxonomy, bundle.info.preprocessing, infer, batch_size=5)
    assert len(predictions.category_logits) == len(rows) - 1
    assert len(predictions.unusable) == 1
    assert "cut.jpg" in predictions.unusable[0]
    with pytest.raises(ManifestError, match="no photo of the manifest can be used"):
        predict(Manifest.from_rows(rows[2:3], ""), bundle.taxonomy, bundle.info.preprocessing, infer)


def test_photos_larger_than_renditions_are_unusable(bundle, tmp_path):
    for side in (64, 65):
        (tmp_path / f"{side}.png").write_bytes(encode_image(Image.new("RGB", (100, side)), "PNG"))
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": f"{side}.png"} for side in (64, 65)], str(tmp_path))
    asked = (manifest, bundle.taxonomy, bundle.info.preprocessing, OnnxEngine(bundle).infer)
    [unusable] = predict(*asked, rendition_px=64).unusable
    assert "65.png: 100x65 is no rendition of 64 px" in unusable
    assert not predict(*asked).unusable
    with pytest.raises(ManifestError, match=r"no photo(.|\n)*64\.png: 100x64 is no rendition of 63 px"):
        predict(*asked, rendition_px=63)


def test_a_model_that_decodes_is_asked_for_files_and_what_it_refuses_left_out(bundle, synthetic_dataset):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test")
    engine, files = OnnxEngine(bundle), []

    def infer_files(photos):
        errors = [PhotoTruncated("cut short") if len(files) + i == 3 else None for i in range(len(photos))]
        pixels = [prepare_photo(data, bundle.info.preprocessing) for data in photos]
        files.extend(photos)
        usable = [photo for photo, error in zip(pixels, errors, strict=True) if error is None]
        return errors, engine.infer(np.stack(usable))

    asked = (rows, bundle.taxonomy, bundle.info.preprocessing)
    of_files = predict(*asked, pytest.fail, infer_files=infer_files, batch_size=5)
    of_pixels = predict(*asked, engine.infer, batch_size=5)
    assert files == [read_photo(rows.get_photo_url(row)) for row in range(len(rows))]
    assert [url.partition(": ")[2] for url in of_files.unusable] == ["cut short"]
    rest = [row for row in range(len(rows)) if row != 3]
    np.testing.assert_allclose(of_files.category_logits, of_pixels.category_logits[rest], atol=1e-4)
    assert of_files.photo_urls == tuple(of_pixels.photo_urls[row] for row in rest)
    assert of_files.num_bytes.tolist() == of_pixels.num_bytes[rest].tolist()
    nothing = Logits(*(part[:0] for part in engine.infer(bundle.golden.photos_nhwc)))
    with pytest.raises(ManifestError, match="no photo of the manifest can be used"):
        predict(*asked, pytest.fail, infer_files=lambda photos: ([PhotoTruncated("cut")] * len(photos), nothing))


def test_size_and_brightness_of_each_photo_are_kept(bundle, tmp_path):
    rows = []
    for name, size_px, grey in (("tall", (300, 700), 200), ("small", (90, 70), 10)):
        (tmp_path / f"{name}.png").write_bytes(encode_image(Image.new("RGB", size_px, (grey,) * 3), "PNG"))
        rows.append({"listing_id": name, "photo": f"{name}.png"})
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    rows.insert(1, {"listing_id": "cut", "photo": "cut.jpg"})
    manifest = Manifest.from_rows(rows, str(tmp_path))
    predictions = predict(manifest, bundle.taxonomy, bundle.info.preprocessing, OnnxEngine(bundle).infer)
    assert predictions.short_sides_px.tolist() == [300, 70]
    assert predictions.brightness == pytest.approx([200, 10])
