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
from training.outcomes.html_report import render_experiment
from training.outcomes.report import Comparison, Drift, ExperimentReport, FieldReport, ShadowReport
from training.statistics.sequential import Interval

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
        "experiment": _render_experiment(),
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
    facts = {"model": "ImageNet features", "counts": "60 listings, 100 photos", **_PROVENANCE}
    return render_suspects([found], facts, title="Suspected labels of data/fruit/manifest.parquet", max_shown=10)


def _render_experiment() -> str:
    fields = [
        FieldReport(
            field=field,
            release=release,
            num_outcomes=num_outcomes,
            accepted=accepted,
            accepted_interval=Interval(accepted - 0.01, accepted + 0.01),
            num_hidden=num_outcomes // 20,
            accepted_unseen=accepted - 0.05,
            accepted_unseen_interval=Interval(accepted - 0.09, accepted - 0.01),
            num_recent=num_outcomes // 10,
            recent_precision=accepted + 0.02,
            guaranteed=0.95 if field == "category_path" else None,
            meets_guarantee=accepted > 0.9 if field == "category_path" else None,
        )
        for field, release, num_outcomes, accepted in (
            ("category_path", "1f0a9c2e.5d21b7", 40977, 0.944),
            ("category_path", "77c01b4d.a90e13", 2156, 0.951),
            ("category_depth_1", "1f0a9c2e.5d21b7", 48210, 0.93),
            ("category_depth_1", "77c01b4d.a90e13", 2537, 0.948),
        )
    ]
    compared = Comparison(
        field="category_depth_1",
        control="1f0a9c2e.5d21b7",
        treatment="77c01b4d.a90e13",
        difference=0.018,
        interval=Interval(0.004, 0.032),
    )
    shadow = ShadowReport(
        field="brand",
        release="c3d2e1f0.11aa22",
        num_outcomes=1204,
        accepted=0.83,
        shown_accepted=0.81,
        interval=Interval(-0.01, 0.05),
        unseen=True,
    )
    report = ExperimentReport(
        fields=fields,
        comparisons=[compared],
        shadow_agreement={"c3d2e1f0.11aa22": (9120, 0.914)},
        shadows=[shadow],
        listings_by_release={"1f0a9c2e.5d21b7": 61874, "77c01b4d.a90e13": 3241},
        sample_ratio_p_value=0.62,
        num_outcomes=50747,
        num_unjoined=12,
        num_left_out=3,
        drift=[
            Drift(statistic="bytes_per_photo", release=None, stability=0.31, chance=0.004),
            Drift(statistic="leaf_probability", release="1f0a9c2e.5d21b7", stability=0.003, chance=0.004),
        ],
        drift_days=7,
    )
    facts = {
        "outcomes": "s3://bucket/outcomes",
        "first_suggestion": "2026-11-01 00:00 UTC",
        "last_suggestion": "2026-11-28 08:59 UTC",
        "files_sha256": "3f9a" * 16,
        "date": "2026-11-28 09:00 UTC",
    }
    return render_experiment(report, facts)
