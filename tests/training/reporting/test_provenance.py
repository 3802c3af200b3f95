from training.reporting.provenance import describe_manifest
from vision.manifest import Manifest


def test_a_manifest_is_named_with_the_digest_of_its_values(tmp_path):
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": "x.jpg", "category": "gala", "brand": ""}], "")
    path = str(tmp_path / "m.parquet")
    manifest.save(path)
    facts = describe_manifest(path)
    assert facts["manifest"] == path
    assert facts["manifest_sha256"] == Manifest.load(path).compute_digest()
    assert facts["date"].endswith(" UTC")
