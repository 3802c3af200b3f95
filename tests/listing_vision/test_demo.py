import numpy as np

from tests.support.cli import run_cli
from training.data.synthetic import create_synthetic_photo
from vision.bundle import load_bundle


def test_the_demo_takes_the_whole_path(tmp_path):
    for split, count in (("train", 12), ("val", 4), ("test", 2)):
        for product in range(3):
            for number in range(count):
                photo = tmp_path / "photos" / split / f"Kind {product}" / f"{number}.jpg"
                photo.parent.mkdir(parents=True, exist_ok=True)
                photo.write_bytes(
                    create_synthetic_photo(product, 0, np.random.default_rng([product, number, len(split)]))
                )
    done = run_cli("demo", "--data", tmp_path / "photos", "--folder", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    for said in ("6/6 Triton and the gateway are shut down", "make serve", "category ", "per listing", "(bundle, run"):
        assert said in done.stdout
    assert (tmp_path / "demo" / "evaluation" / "report.html").is_file()
    assert load_bundle(tmp_path / "demo" / "bundle").info.model_name == "demo"
    refused = run_cli("demo", "--data", tmp_path / "photos", "--folder", tmp_path)
    assert refused.returncode == 1
    assert "which the demo empties" in refused.stderr
    assert (tmp_path / "photos").is_dir()
