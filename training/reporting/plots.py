"""Plots as inline SVG for the HTML reports: nothing is loaded, and text has the colour of the page, light or dark."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_reliability", "plot_risk_coverage", "plot_shares"]

_BLUE, _ORANGE = "#3b82d6", "#d9772b"
"""Both at least 3:1 against white and against black (WCAG 2.2, 1.4.11)."""
_TEXT = "#010203"
"""Replaced by the page's text colour."""
_MAX_NAME_LENGTH = 32

Points = Sequence[Mapping[str, Any]]


def plot_risk_coverage(selective: Mapping[str, Any], *, key: str, label: str) -> Markup:
    """Precision over coverage with its intervals, and the certified point where there is one.

    Args:
        key: different for each plot of a page.
        label: what the plot shows, for screen readers.
    """

    def draw(axes: "Axes") -> None:
        points: Points = selective["points"]
        coverage = 100 * np.array([point["coverage"] for point in points])
        low, high = 100 * np.array([point["precision_interval"] for point in points]).reshape(-1, 2).T
        axes.fill_between(coverage, low, high, color=_BLUE, alpha=0.25, linewidth=0, label="95 % interval")
        axes.plot(coverage, [100 * point["precision"] for point in points], color=_BLUE, label="precision")
        certified = selective["certified"]
        if certified is not None:
            guaranteed = 100 * (1 - certified["alpha"])
            axes.axhline(guaranteed, color=_ORANGE, linestyle=":", label=f"guaranteed {guaranteed:g} %")
            if certified["num_filled"]:
                at, precision = 100 * certified["coverage"], 100 * certified["precision"]
                bars = _compute_error_bars([precision], [[100 * end for end in certified["precision_interval"]]])
                axes.errorbar(at, precision, yerr=bars, color=_ORANGE, marker="D", capsize=3, label="certified")
        axes.set(xlabel="coverage, %", ylabel="precision, %", xlim=(0, 102))
        axes.set_ylim(max(0.0, float(low.min(initial=100)) - 2), 101)
        axes.figure.legend(loc="outside lower center", ncols=4)

    return _render_svg(draw, key=key, label=label)


def plot_reliability(before: Points, after: Points, *, key: str, label: str) -> Markup:
    """Accuracy over confidence, before and after calibration; on the diagonal both are equal.

    Args:
        before: empty where calibration changes nothing, so that there is one curve.
        after: with calibration.
        key: different for each plot of a page.
        label: what the plot shows, for screen readers.
    """

    def draw(axes: "Axes") -> None:
        axes.plot([0, 100], [0, 100], color="#888888", linestyle=":", linewidth=1)
        for bins, color, marker, name in (
            (before, _ORANGE, "s", "before"),
            (after, _BLUE, "o", "after" if before else "as it is"),
        ):
            if not bins:
                continue
            accuracy = [100 * part["accuracy"] for part in bins]
            bars = _compute_error_bars(accuracy, [[100 * end for end in part["accuracy_interval"]] for part in bins])
            axes.errorbar(
                [100 * part["confidence"] for part in bins],
                accuracy,
                yerr=bars,
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1,
                elinewidth=0.8,
                label=name,
            )
        axes.set(xlabel="confidence, %", ylabel="right, %", xlim=(0, 102), ylim=(0, 102))
        axes.figure.legend(loc="outside lower center", ncols=2)

    return _render_svg(draw, key=key, label=label)


def plot_shares(
    names: Sequence[str], shares: Sequence[float], intervals: Sequence[Sequence[float]], *, key: str, label: str
) -> Markup:
    """At least one share with its interval, one below the other."""

    def draw(axes: "Axes") -> None:
        values = [100 * share for share in shares]
        bars = _compute_error_bars(values, [[100 * end for end in interval] for interval in intervals])
        axes.errorbar(values, range(len(values)), xerr=bars, color=_BLUE, marker="o", linestyle="none", capsize=3)
        axes.set_yticks(range(len(names)), [_shorten(name) for name in names])
        axes.set(xlabel="%", xlim=(-2, 102), ylim=(len(names) - 0.5, -0.5))

    return _render_svg(draw, key=key, label=label, height_in=0.9 + 0.28 * len(names))


def _compute_error_bars(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """(2, N) lengths below and above."""
    ends = np.array(intervals, dtype=np.float64).reshape(-1, 2).T
    lengths: npt.NDArray[np.float64] = np.abs(ends - np.array(values))
    return lengths


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME_LENGTH else name[: _MAX_NAME_LENGTH - 1] + "…"


def _render_svg(draw: Callable[["Axes"], None], *, key: str, label: str, height_in: float = 3.2) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.edgecolor": _TEXT,
        "axes.grid": True,
        "axes.labelcolor": _TEXT,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.alpha": 0.3,
        "grid.color": "#888888",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.fonttype": "none",
        # Ids follow from the content and this; the same on two plots of a page would be one id twice.
        "svg.hashsalt": key,
        "text.color": _TEXT,
        # A name with two dollar signs is a name.
        "text.parse_math": False,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has the glyph; the font that only measures the text here may not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(4.6, height_in), layout="constrained")
        draw(figure.subplots())
        return _to_inline_svg(figure, label)


def _to_inline_svg(figure: "Figure", label: str) -> Markup:
    """The figure as SVG to stand in HTML: without declarations, addresses of schemas and ids of groups."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg ") :].strip()
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    opening = f'<svg role="img" aria-label="{escape(label)}" {view_box[0]}>'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return Markup(svg.replace("xlink:href=", "href=").replace(_TEXT, "currentColor"))
