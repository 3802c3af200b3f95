"""Write docs/scope.svg, docs/agreement.svg and docs/guarantee.svg from the committed results of the benchmarks.

python -m scripts.draw_evaluation_pictures [--folder docs]
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.scope import HISTOGRAM_RANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLUE, ORANGE, GREY = "#3b82d6", "#d9772b", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "svg.hashsalt": "docs",
}


def draw_scope(axes: "Axes", result: dict[str, Any]) -> None:
    """Scores of Grocery Store's own photos, of other goods and of photos without a product, and the threshold."""
    model = result["details"]["models"]["grocery"]
    outside = {kind: np.array(found["score_histogram"]) for kind, found in model["outside"].items()}
    goods = outside.pop("other goods")
    for counts, colour, label in (
        (np.array(model["inside"]["score_histogram"]), BLUE, "groceries"),
        (goods, ORANGE, "other goods"),
        (np.sum(list(outside.values()), axis=0), GREY, "walls, text, noise, screenshots, plots"),
    ):
        edges = np.linspace(*HISTOGRAM_RANGE, len(counts) + 1)
        axes.stairs(100 * counts / counts.sum(), edges, color=colour, fill=True, alpha=0.6, label=label)
    axes.axvline(model["scope_threshold"], color="black", linestyle=":", label="nothing is filled in below")
    axes.set(xlabel="scope score", ylabel="share of listings, %")


def draw_agreement(axes: "Axes", result: dict[str, Any]) -> None:
    """How often something is filled in for photos of one product and of two, with agreement and without."""
    found = result["details"]["models"]["drawn"]
    honest, mixed = found["honest"], found["mixed"]
    shares = {
        "one product,\nleaf": (honest["leaf_filled_share_without_agreement"], honest["leaf_filled_share"]),
        "two products,\nleaf": (mixed["leaf_filled_share_before"], mixed["leaf_filled_share"]),
        "two top categories,\nanything": (mixed["root_filled_share_before"], mixed["root_filled_share"]),
    }
    places = np.arange(len(shares))
    for offset, colour, label, values in zip(
        (-0.2, 0.2),
        (GREY, BLUE),
        ("without agreement", "with agreement"),
        np.array(list(shares.values())).T,
        strict=True,
    ):
        axes.bar(places + offset, 100 * values, 0.4, color=colour, label=label)
    axes.set_xticks(places, list(shares))
    axes.set(ylabel="filled in, %")


def draw_guarantee(axes: "Axes", result: dict[str, Any]) -> None:
    """What share of filled categories is wrong, over many draws of the calibration listings, by two rules."""
    found = result["details"]["grocery"]
    for name, colour, label in (
        ("usual_rule_path_error_shares", ORANGE, "usual rule: right often enough on the calibration listings"),
        ("path_error_shares", BLUE, "certified threshold"),
    ):
        edges = np.linspace(0, 10, len(found[name]) + 1)
        axes.stairs(found[name], edges, color=colour, fill=True, alpha=0.6, label=label)
    axes.axvline(5, color="black", linestyle=":", label="at most 5 % is guaranteed")
    axes.set(xlabel="wrong among the categories filled in, %", ylabel=f"of {found['draws']:,} draws")


PICTURES = {
    "scope": ("scope", draw_scope),
    "agreement": ("scope", draw_agreement),
    "guarantee": ("certificate_grocery", draw_guarantee),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    folder: Path = parser.parse_args().folder
    for name, (source, draw) in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 3.4), layout="constrained")
            draw(figure.subplots(), json.loads((RESULTS / f"{source}.json").read_text()))
            figure.legend(loc="outside lower center", ncols=1 if name == "guarantee" else 2)
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
        print(f"written: {folder / name}.svg")


if __name__ == "__main__":
    main()
