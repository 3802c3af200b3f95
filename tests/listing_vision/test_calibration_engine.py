import pytest

from listing_vision.calibration_engine import open_predictor
from vision.errors import ManifestError
from vision.manifest import Manifest


def test_photos_that_cannot_be_used_are_logged_and_labels_are_those_of_the_taxonomy(
    bundle, synthetic_dataset, tmp_path, caplog
):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).rebase(str(tmp_path)).table.to_pylist()[:2]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    broken = {**rows[0], "listing_id": "broken", "photo": str(tmp_path / "broken.jpg")}
    unknown = {**rows[0], "brand": "Brand Nobody Knows"}
    with open_predictor(bundle, None) as predictor:
        assert predictor.backend == "onnxruntime-cpu"
        predictions = predictor.predict(Manifest.from_rows([*rows, broken], str(tmp_path)))
        with pytest.raises(ManifestError, match="Brand Nobody Knows"):
            predictor.predict(Manifest.from_rows([unknown], str(tmp_path)))
    assert len(predictions.photo_urls) == 2
    assert "left out of calibration" in caplog.text
    assert "broken.jpg" in caplog.text
    with open_predictor(bundle, None, other_brands=True) as predictor:
        assert len(predictor.predict(Manifest.from_rows([unknown], str(tmp_path))).photo_urls) == 1
