"""Reports of invented models on drawn photos: what the browser's tests and the screenshots of reports open."""

from pathlib import Path

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from tests.support.synthetic import create_synthetic_calibration, create_synthetic_predictions
from tests.support.two_models import create_listings, model
from training.comparison.compare import compare
from training.comparison.gate import Gate
from training.comparison.html_report import render_comparison
from training.comparison.text_report import ComparedModels, GateVerdict
from training.data.label_errors import FieldLabelErrors, SuspectedLabel
from training.data.label_errors_page import render_suspects
from training.evaluation.evaluate import evaluate, explore_thresholds
from training.evaluation.report import render_report

__all__ = ["write_reports"]

_TAXONOMY = create_small_taxonomy()
_PROVENANCE = {
    "date": "2026-11-28 09:00 UTC",
    "manifest": "data/fruit/manifest.parquet",
    "manifest_sha256": "3f9a" * 16,
}


def write_reports(folder: Path) -> dict[str, Path]:
    """Write one report of each kind into a folder, and return their paths by kind."""
    photos = [folder / f"{number}.jpg" for number in range(3)]
    for number, photo in enumerate(photos):
        photo.write_bytes(encode_image(create_scene(320 + 40 * number, 300)))
    texts = {
        "evaluation": _render_evaluation(tuple(map(str, photos))),
        "comparison": _render_comparison(f"{folder}/{{}}.jpg"),
        "suspects": _render_suspects(str(photos[0])),
    }
    for kind, text in texts.items():
        (folder / f"{kind}.html").write_text(text, encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in texts}


def _render_evaluation(photos: tuple[str, ...]) -> str:
    predictions = create_synthetic_predictions(num_listings=150, photos=photos)
    calibration = create_synthetic_calibration()
    figures = evaluate(predictions, taxonomy=_TAXONOMY, calibration=calibration)
    selective = explore_thresholds(predictions, taxonomy=_TAXONOMY, calibration=calibration)
    facts = {"model": "bundle fruit 3", "split": "test", "provenance": _PROVENANCE}
    exploration = {"split": "val", "num": 150, "selective": selective}
    return render_report({**facts, **figures, "exploration": exploration})


def _render_comparison(photo: str) -> str:
    a, b = model(_TAXONOMY, thresholds={"category_depth_1": 0.5}), model(_TAXONOMY)
    rows = [("gala", "acme", ("gala", 1), ("gala", 1))] * 20 + [("gala", "acme", ("gala", 1), ("fuji", 1))] * 2
    listings = create_listings([*rows, ("lemon", "acme", ("gala", 1), ("lemon", 1))], a, b, photo=photo)
    comparison = compare(a, b, listings)
    compared = ComparedModels(
        name_a="bundle fruit 2",
        name_b="bundle fruit 3",
        taxonomy_a="fruit-1",
        taxonomy_b="fruit-1",
        split="test",
        **_PROVENANCE,
    )
    gate = Gate(min_category_listings=10)
    verdict = GateVerdict(gate=gate, rules=gate.check(comparison))
    return render_comparison(compared, comparison, listings, verdict, max_shown=10)


def _render_suspects(photo: str) -> str:
    suspects = tuple(
        SuspectedLabel(
            field="category",
            rank=rank,
            row=rank,
            photo=photo,
            listing_id=f"listing {rank}",
            given="Fruit > Apple > Gala",
            suggested=suggested,
            given_probability=0.01,
            suggested_probability=0.99999,
        )
        for rank, suggested in enumerate(("Fruit > Apple > Fuji", "Fruit > Lemon"), start=1)
    )
    found = FieldLabelErrors(
        field="category",
        suspects=suspects,
        num_compared=100,
        accuracy=0.68,
        num_unlabelled=0,
        num_inner=0,
        rare_classes=(),
        num_rare=0,
        examples={"Fruit > Lemon": (photo,)},
    )
    return render_suspects([found], title="Suspected labels of data/fruit/manifest.parquet", max_shown=10)
