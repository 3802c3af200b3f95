"""The verbs for finished models: `runs`, `evaluate`, `export`, `convert`. Torch is imported when one runs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.startup import load_torch
from vision.errors import ListingVisionError
from vision.runtime.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.evaluation.gradcam import GradcamExample

__all__ = ["convert", "evaluate", "export", "runs"]

_log = logging.getLogger(__name__)


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder to search, including sub-folders.")] = Path("runs"),
) -> None:
    """List training runs with their figures, the best on val first.

    Example: listing-vision runs runs
    """
    from training.run import find_runs

    lines = []
    for run in find_runs(folder):
        records = run.metrics()
        judged = [record for record in records if record.get("val_leaf_top1") is not None]
        val = judged[-1]["val_leaf_top1"] if judged else None
        figures = [
            f"{val:.1%}" if val is not None else "-",
            f"{judged[-1]['val_brand_top1']:.1%}" if judged and judged[-1].get("val_brand_top1") is not None else "-",
            f"{records[-1]['loss']:.3f}" if records else "-",
            f"{len(records)}/{run.recipe.num_epochs}",
            f"{sum(record['seconds'] for record in records) / 60:.1f}",
            "finished" if run.finished else "unfinished",
            run.recipe.backbone,
        ]
        lines.append((-1.0 if val is None else val, str(run.folder), figures))
    width = max(len(name) for _, name, _ in lines)
    typer.echo(f"{'run':{width}}    val  brand   loss epochs    min  state       backbone")
    for _, name, (leaf, brand, loss, epochs, minutes, state, backbone) in sorted(lines, key=lambda line: -line[0]):
        typer.echo(f"{name:{width}} {leaf:>6} {brand:>6} {loss:>6} {epochs:>6} {minutes:>6}  {state:10}  {backbone}")


def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle, or the folder of a finished run.")],
    manifest: Annotated[str, typer.Argument(help="Manifest with the photos to evaluate on.")],
    split: Annotated[str, typer.Option(help="Split of the manifest to use.")] = "test",
    engine: Annotated[
        str, typer.Option(help="What runs a bundle: onnxruntime, or aot-inductor for its model.pt2.")
    ] = "onnxruntime",
    rendition_px: Annotated[
        int | None,
        typer.Option(
            "--rendition",
            min=16,
            help="Short side in pixels, if the manifest's photos are copies of that size (`data shard --max-px`): only "
            "guarantees of `calibrate --rendition` fill then. Default: originals.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json and report.html, or a file name that ends in .json for the figures alone."
        ),
    ] = None,
    photos_per_listing: Annotated[
        int | None,
        typer.Option(
            min=1, help="Group photos of one category at random into listings of this size, for data without listings."
        ),
    ] = None,
    other_brands: Annotated[
        bool,
        typer.Option("--other-brands", help="A brand that the taxonomy lacks counts as out of scope, not as an error."),
    ] = False,
    explore: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="Adds threshold sliders to the report, which move on the tune listings of this split, such as val.",
        ),
    ] = None,
) -> None:
    """Evaluate a model per photo and per listing, with the decision rule of serving.

    A bundle is evaluated by its ONNX export, or another with --engine; a run by its trained weights.

    Example: listing-vision evaluate bundles/grocery data/grocery/manifest.parquet --output reports/grocery
    """
    from training.api import evaluate as judge
    from training.evaluation.evaluate import format_table
    from training.evaluation.report import write_report
    from training.evaluation.verdict import build_verdict
    from training.reporting.provenance import describe_manifest

    found = judge(
        model,
        manifest,
        split=split,
        photos_per_listing=photos_per_listing,
        other_brands=other_brands,
        tune_split=explore,
        engine=engine,  # type: ignore[arg-type]  # checked there
        rendition_px=rendition_px,
    )
    judged, predictions, figures = found.model, found.predictions, found.figures
    for photo in predictions.unusable:
        _log.warning("not used: %s", photo)
    typer.echo("\n".join(build_verdict(figures)) + "\n")
    typer.echo(format_table(figures))

    def compute_examples() -> "Sequence[GradcamExample]":
        from training.evaluation.gradcam import choose_examples

        try:
            return choose_examples(predictions, judged)
        except ListingVisionError as error:  # captum is an extra; the rest of the page is useful without it
            _log.warning("the report shows no heat maps: %s", error)
            return ()

    if output:
        facts = {"model": judged.name, "split": split, "provenance": describe_manifest(manifest)}
        for written in write_report({**facts, **figures}, output, compute_examples):
            typer.echo(f"written: {written}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    name: Annotated[str | None, typer.Option(help="The model's name in responses. Default: the run's.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="last or best: the epoch whose weights are exported. Default: as the recipe says."),
    ] = None,
    pt2: Annotated[
        bool,
        typer.Option(
            "--pt2",
            help="Also compile a model.pt2 (torch.export and AOTInductor) for CPUs of this kind, with the C++ compiler "
            "in CXX or g++.",
        ),
    ] = False,
) -> None:
    """Export to ONNX and TorchScript, compare both with the trained model, calibrate on val, and seal a bundle.

    Example: listing-vision export runs/grocery --output bundles/grocery
    """
    load_torch()
    from training.export.export import export_bundle
    from training.export.model_card import format_guarantees
    from training.run import Run

    with Progress(f"exporting {run}"):
        bundle = export_bundle(Run(run), output, model_name=name or Run(run).name, weights=weights, pt2=pt2)  # type: ignore[arg-type]  # checked there
    for export_name in ("onnx", "torchscript", *(["aot_inductor"] if pt2 else [])):
        parity = bundle.info.parity[export_name]
        worst = max(parity["max_abs_difference"].values())
        typer.echo(f"{export_name}: largest difference {worst:.2g} on {bundle.info.parity['photos']}")
    for line in format_guarantees(bundle.calibration):
        typer.echo(line)
    typer.echo(f"bundle {output}: {bundle.info.model_name} {bundle.info.model_version}")
    typer.echo(f"next: listing-vision serve {output}")


def convert(
    bundle: Annotated[Path, typer.Argument(help="A bundle in fp32.")],
    manifest: Annotated[str, typer.Argument(help="The manifest that it was trained on.")],
    precision: Annotated[str, typer.Option(help="fp16, for GPUs, or int8, for CPUs.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    max_top1_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse if a larger share of val's photos is no longer right.")
    ] = 0.005,
) -> None:
    """Write a bundle of the same weights in fp16 or INT8, evaluated on val and certified again.

    For INT8, activation ranges come from training photos; the method that finds them is chosen on val.

    Example: listing-vision convert bundles/grocery data/grocery/manifest.parquet --precision int8 --output bundles/int8
    """
    load_torch()
    from training.export.model_card import format_guarantees
    from training.export.precision import convert_bundle
    from vision.bundle import load_bundle
    from vision.manifest import Manifest

    with Progress(f"converting {bundle}"):
        written = convert_bundle(
            load_bundle(bundle),
            Manifest.load(manifest),
            output,
            precision=precision,  # type: ignore[arg-type]  # checked there
            max_top1_loss=max_top1_loss,
        )
    found = written.info.training["converted"]
    gained = f"{-100 * found['top1_loss'] or 0.0:+.2f} points of top-1 on {found['num_photos']} photos"
    typer.echo(f"{precision} by {found['how']}: {gained}")
    for name, rate in found["photos_per_s_one_thread"].items():
        typer.echo(f"{name}: {rate:.1f} photos/s, the model alone on one thread")
    for line in format_guarantees(written.calibration):
        typer.echo(line)
    typer.echo(f"bundle {output}: {written.info.model_name} {written.info.model_version}")
