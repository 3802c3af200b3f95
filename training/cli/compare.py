"""The verb that holds two models side by side: `compare`."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from vision.runtime.progress import Progress

__all__ = ["EXIT_GATE_NOT_PASSED", "compare"]

_log = logging.getLogger(__name__)

EXIT_GATE_NOT_PASSED = 3
"""1 is a failure and 2 a usage error: a release job can tell a worse model from a comparison that did not happen."""
_MAX_SHOWN = 60


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The model in use: a bundle, or a finished run's folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The candidate replacement.")],
    manifest: Annotated[str, typer.Argument(help="Manifest with the listings to evaluate both on.")],
    split: Annotated[str, typer.Option(help="Split of the manifest to use.")] = "test",
    gate: Annotated[Path | None, typer.Option(help="Rules for B, .toml or .yaml; exits 3 if one is broken.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for compare.json and compare.html.")] = None,
) -> None:
    """Compare two models on the same listings: where B is better or worse than A, and whether by chance.

    Exits 0, or 3 if a gate is given and fails; 1 and 2 are failures and usage errors. training/gates/ has a gate to
    start from.

    Example: listing-vision compare bundles/old bundles/new data/grocery/manifest.parquet --gate gate.toml
    """
    from training.comparison.common_listings import predict_both
    from training.comparison.compare import compare as compare_answers
    from training.comparison.gate import load_gate
    from training.comparison.html_report import render_comparison
    from training.comparison.text_report import (
        ComparedModels,
        GateVerdict,
        build_comparison_json,
        format_comparison,
        format_verdict,
    )
    from training.comparison.verdict import build_comparison_verdict
    from training.evaluation.evaluate import replace_nan
    from training.inference.evaluated_model import load_evaluated_model
    from training.reporting.provenance import describe_manifest
    from vision.manifest import Manifest

    rules = load_gate(gate) if gate else None
    rows = Manifest.load(manifest).select_split(split)
    with Progress("loading both models"):
        model_a, model_b = load_evaluated_model(a), load_evaluated_model(b)
    listings = predict_both(rows, model_a, model_b)
    for photo in listings.unusable:
        _log.warning("not used: %s", photo)
    comparison = compare_answers(model_a, model_b, listings)
    verdict = GateVerdict(gate=rules, rules=rules.check(comparison)) if rules else None
    compared = ComparedModels(
        name_a=f"{a}: {model_a.name}",
        name_b=f"{b}: {model_b.name}",
        taxonomy_a=model_a.taxonomy.version,
        taxonomy_b=model_b.taxonomy.version,
        split=split,
        **describe_manifest(manifest),
    )
    typer.echo("\n".join(build_comparison_verdict(comparison, verdict)) + "\n")
    typer.echo(format_comparison(compared, comparison, listings))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        figures = replace_nan(build_comparison_json(compared, comparison, listings, verdict))
        text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (output / "compare.json").write_text(text, encoding="utf-8")
        page = render_comparison(compared, comparison, listings, verdict, max_shown=_MAX_SHOWN)
        (output / "compare.html").write_text(page, encoding="utf-8")
        typer.echo(f"written: {output / 'compare.json'}, {output / 'compare.html'} (with photos)")
    if verdict:
        typer.echo("\n".join(format_verdict(verdict)))
        if not verdict.passed:
            raise typer.Exit(EXIT_GATE_NOT_PASSED)
