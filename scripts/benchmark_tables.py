"""Render docs/benchmarks.md, and the comparison in README.md, from benchmarks/results/*.json.

The text is `benchmarks/page.md.j2`. `--check` fails when a committed page is not what would be written.
"""

import json
import re
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

__all__ = ["render_page", "render_readme"]

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "benchmarks" / "page.md.j2"
PEERS = {"plain_grpc": "ONNX Runtime behind gRPC", "bentoml": "BentoML", "litserve": "LitServe"}
COMPARISON = re.compile(r"<!-- comparison: begin -->.*<!-- comparison: end -->", re.DOTALL)


def render_page(results: Mapping[str, Any]) -> str:
    """Return docs/benchmarks.md as it must be.

    Args:
        results: the content of each result file by its name.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {
        "number": lambda value, digits=0: f"{float(value):,.{digits}f}",
        "percent": lambda share, digits=1: f"{100 * share:.{digits}f} %",
        "signed": lambda points: f"{float(points):+.1f}",
        "mean": lambda rows, name: statistics.mean(row[name] for row in rows),
        "median": statistics.median,
        "versus": _mark_better,
        "machine": _describe_machine,
    }
    environment.globals |= {"peers": _list_peers, "throughput": _throughput, "guarantees": _guarantees}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(results=results)
    return re.sub(r"\n{3,}", "\n\n", page)


def render_readme(readme: str, page: str) -> str:
    """Return the README with the page's comparison in the place that its two comments mark."""
    comparison = COMPARISON.search(page)
    if comparison is None or not COMPARISON.search(readme):
        raise SystemExit("README.md has no <!-- comparison: begin --> … <!-- comparison: end -->")
    return COMPARISON.sub(lambda _: comparison.group(), readme)


def _describe_machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    words = [f"{machine['cores']} cores", machine["cpu"].replace("(R)", ""), machine["gpu"] or "no GPU"]
    return ", ".join(words)


def _mark_better(theirs: float, ours: float, text: str, *, lower: bool = False) -> str:
    return f"**{text}**" if (theirs < ours if lower else theirs > ours) else text


def _list_peers(metrics: Mapping[str, float], name: str) -> str:
    """Return each peer's value of one of the gateway's metrics, in bold where it is better."""
    in_ms = "_ms" in name
    values = {title: metrics[f"{peer}_{name}"] for peer, title in PEERS.items()}
    texts = {title: f"{value:.0f} ms" if in_ms else f"{value:.1f}" for title, value in values.items()}
    return ", ".join(
        f"{_mark_better(value, metrics[name], texts[title], lower=in_ms)} ({title})" for title, value in values.items()
    )


def _throughput(metrics: Mapping[str, float], prefix: str, suffix: str) -> str:
    """Return four cells: photos/s, share of the ceiling, p50 and p99."""
    rate, share, p50_ms, p99_ms = (
        metrics[f"{prefix}{name}{suffix}"] for name in ("photos_per_s", "ratio_to_ceiling", "p50_ms", "p99_ms")
    )
    return f" {rate:.1f} | {share:.2f} | {p50_ms:.0f} ms | {p99_ms:.0f} ms |"


def _guarantees(details: Mapping[str, Any]) -> str:
    """Return a table with a row per field, and how often a new calibration breaks the guarantee."""
    lines = [
        "| field | guaranteed | prefilled on test | right, of those | could be prefilled with all labels known |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, field in details["fields"].items():
        # Whether a path is right depends on how deep it is filled: no one number could be the best.
        best = f"{100 * field['best_possible_coverage']:.1f} %" if "best_possible_coverage" in field else ""
        right = "–" if field["test_precision"] is None else f"{100 * field['test_precision']:.1f} %"
        lines.append(
            f"| {name.replace('_', ' ')} | {100 * (1 - field['alpha']):.0f} % "
            f"| {100 * field['test_coverage']:.1f} % of {field['test_listings']:,} | {right} "
            f"| {best} |"
        )
    reasons = [f"{name.replace('_', ' ')}: {field['uncertified_reason']}." for name, field in details["fields"].items()]
    lines += ["", *(f"- {reason[0].upper()}{reason[1:]}" for reason in reasons if not reason.endswith(": ."))]
    lines.append(
        f"- With the calibration listings drawn again {details['draws']:,} times, the guarantee is broken in "
        f"{100 * details['violation_rate']:.1f} % of draws; 5 % is allowed."
    )
    return "\n".join(lines)


def main() -> None:
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in (ROOT / "benchmarks" / "results").glob("*.json")
    }
    page = render_page(results)
    readme = ROOT / "README.md"
    files = {
        ROOT / "docs" / "benchmarks.md": page,
        readme: render_readme(readme.read_text(encoding="utf-8"), page),
    }
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            raise SystemExit(f"stale: {names}; run `make benchmark-tables`")
        print("benchmark tables: current")
        return
    for path in stale:
        path.write_text(files[path], encoding="utf-8")


if __name__ == "__main__":
    main()
