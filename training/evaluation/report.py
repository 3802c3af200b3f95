"""The page of an evaluation: what `metrics.json` says, as plots, tables and photos."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.evaluate import without_nan
from training.reporting.page import image, page, thumbnails
from training.reporting.plots import curve_plot, reliability_plot, shares_plot
from vision.calibration import BRAND_FIELD

if TYPE_CHECKING:
    from training.evaluation.looks import Look

__all__ = ["report_page", "write_report"]

_PHOTO_PX = 200
_MOST_SLICES_PLOTTED = 40
_STYLE = """
.table { overflow-x: auto; margin: .75rem 0 }
.table:focus-visible, summary:focus-visible { outline: 3px solid #27f; outline-offset: 2px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .25rem 0 }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #8884; white-space: nowrap }
th[scope=row], thead th:first-child { text-align: left; white-space: normal; min-width: 8rem }
th { overflow-wrap: break-word }
section > h3 { font-size: 1.2rem; margin-top: 1.5rem }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
figure { margin: 0 }
figure svg { width: 100%; height: auto; max-width: 34rem }
figcaption { font-weight: 600 }
.pair { display: grid; gap: .5rem; grid-template-columns: 1fr 1fr }
.pair img { width: 100%; height: 8rem; object-fit: contain; background: #8882 }
"""

Figures = Mapping[str, Any]
Section = Callable[[Figures, str], str]


def report_page(figures: Figures, looks: "Sequence[Look]" = ()) -> str:
    """The whole page, its photos read from where `figures` says they are.

    Args:
        figures: what `evaluate` returns, with `model` and `split`.
        looks: where the model looked; without any there is no such section.
    """
    views = {name: figures[name] for name in ("listing", "photo")}
    if views["listing"]["num"] == views["photo"]["num"]:
        del views["photo"]
    links = " · ".join(
        f'<a href="#{view}-{key}">{title.lower()} per {view}</a>' for view in views for key, title, _ in _SECTIONS
    )
    body = "".join(_view(part, name) for name, part in views.items())
    if looks:
        links += ' · <a href="#looks">where the model looked</a>'
        body += _looks(looks)
    return page(
        title=f"Evaluation of {figures['model']} on {figures['split']}",
        body=f'{_introduction(figures, views)}<nav aria-label="Sections"><p class="small">{links}</p></nav>\n{body}',
        style=_STYLE,
    )


def write_report(figures: Figures, output: Path, looks: "Callable[[], Sequence[Look]]" = tuple) -> tuple[Path, ...]:
    """Write `metrics.json` and `report.html` into a folder, or the figures alone where `output` ends in `.json`.

    Args:
        figures: what `evaluate` returns, with `model` and `split`.
        output: of which the folder is made.
        looks: finds where the model looked; called for a page only.
    """
    alone = output.suffix == ".json"
    metrics = output if alone else output / "metrics.json"
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(without_nan(figures), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if alone:
        return (metrics,)
    report = output / "report.html"
    report.write_text(report_page(figures, looks()), encoding="utf-8")
    return metrics, report


def _looks(looks: "Sequence[Look]") -> str:
    cards = "".join(map(_look, looks))
    return (
        '<section aria-labelledby="looks">\n<h2 id="looks">Where the model looked</h2>\n'
        "<p>What is red spoke most for the category answered from that photo alone (Grad-CAM, Selvaraju et al. 2017): "
        f"the surest mistakes first, then some right answers.</p>\n<ol>\n{cards}</ol>\n</section>\n"
    )


def _look(look: "Look") -> str:
    is_right = look.answered == look.true
    labelled = "" if is_right else f"<p>labelled {escape(look.true)}</p>\n"
    return (
        f'<li tabindex="0">\n{image(look.image_uri, f"Heat for {look.answered}")}\n'
        f"<h3>{'right' if is_right else 'wrong'}: {escape(look.answered)}, {look.probability:.1%}</h3>\n"
        f"{labelled}<p><code>{escape(look.photo)}</code></p>\n</li>\n"
    )


def _introduction(figures: Figures, views: Figures) -> str:
    sentences = [
        f"{figures['listing']['num']} listings with {figures['photo']['num']} photos of the split "
        f"“{escape(figures['split'])}”, answered as serving answers them."
    ]
    if figures["num_unusable_photos"]:
        sentences.append(f"{figures['num_unusable_photos']} photos could not be used.")
    if "photo" not in views:
        sentences.append("Each listing has one photo, so figures per photo are the same.")
    sentences.append(
        "Small numbers beside a figure are its 95 % interval: Wilson's for shares, photos of one listing counting for "
        "fewer; a bootstrap over listings for the rest. All figures are in metrics.json."
    )
    return f"<p>{' '.join(sentences)}</p>\n"


def _view(part: Figures, view: str) -> str:
    sections = "".join(
        f'<section aria-labelledby="{view}-{key}">\n<h3 id="{view}-{key}">{title}</h3>\n{make(part, view)}</section>\n'
        for key, title, make in _SECTIONS
    )
    return f'<h2 id="{view}">Per {view} ({part["num"]})</h2>\n{sections}'


def _accuracy(part: Figures, view: str) -> str:
    rows = [
        [
            _field_name(name),
            str(level["num"]),
            *(_percent(level, key) for key in ("top1", "top5", "macro", "ece_uncalibrated", "ece")),
        ]
        for name, level in _levels(part)
    ]
    brand = part["brand"]
    ece = (_percent(brand, key) for key in ("ece_uncalibrated", "ece"))
    rows.append(["Brand", str(brand["num"]), _percent(brand, "top1"), "–", "–", *ece])
    header = ["", "labelled", "top-1", "top-5", "macro", "ECE before", "ECE after"]
    return _table("Accuracy in percent; calibration error before and after the temperature", header, rows)


def _selective(part: Figures, view: str) -> str:
    plots, tables = [], []
    for name, selective in part["selective"].items():
        if not selective["points"]:
            continue
        title, certified = _field_name(name), selective["certified"]
        said = (
            f"the certified threshold {certified['threshold']:.3f} fills {_number(certified['coverage'])} %, "
            f"{_number(certified['precision'])} % of them right"
            if certified
            else f"never filled: {selective['uncertified_reason']}"
        )
        all_filled = selective["points"][-1]
        label = (
            f"{title} per {view}: precision against coverage; {_number(all_filled['precision'])} % precise where "
            f"{_number(all_filled['coverage'])} % are filled; {said}."
        )
        plots.append(
            _figure(curve_plot(selective, key=f"{view}-selective-{name}", label=label), escape(f"{title}: {said}"))
        )
        rows = [_point(f"from {point['threshold']:.3f}", point) for point in _thinned(selective["points"])]
        if certified:
            rows.append(_point(f"certified: from {certified['threshold']:.3f}", certified))
        tables.append(_table(f"{title}, {selective['num']} with known truth", _POINT_HEADER, rows))
    text = "<p>What share of a field is right when only its surest answers are filled in.</p>\n"
    return text + _plots(plots) + _details("The curves as tables", "".join(tables))


_POINT_HEADER = ["filled from a probability", "filled", "coverage", "precision"]


def _point(name: str, point: Figures) -> list[str]:
    return [name, str(point["num_filled"]), _percent(point, "coverage"), _percent(point, "precision")]


def _thinned(points: Sequence[Figures], *, num: int = 10) -> Sequence[Figures]:
    """The first point of each further tenth, and the last one."""
    chosen, wanted = [], 1 / num
    for point in points:
        if point["coverage"] >= wanted - 1e-9 or point is points[-1]:
            chosen.append(point)
            wanted = (int(point["coverage"] * num + 1e-9) + 1) / num
    return chosen


def _calibration(part: Figures, view: str) -> str:
    plots, tables = [], []
    for name, level in (*_levels(part), (BRAND_FIELD, part["brand"])):
        if not level["reliability"]:
            continue
        title = _field_name(name)
        errors = f"calibration error {_number(level['ece_uncalibrated'])} % before, {_number(level['ece'])} % after"
        before, after = level["reliability_uncalibrated"], level["reliability"]
        svg = reliability_plot(
            before,
            after,
            key=f"{view}-reliability-{name}",
            label=f"{title} per {view}: right over confidence; {errors}.",
        )
        plots.append(_figure(svg, escape(f"{title}: {errors}")))
        rows = [
            [f"{when}: {_number(row['confidence'])}", str(row["num"]), _percent(row, "accuracy")]
            for when, bins in (("before", before), ("after", after))
            for row in bins
        ]
        tables.append(_table(title, ["mean confidence, %", "answers", "right"], rows))
    text = "<p>On the dotted line, nine in ten of what is said with 90 % are right.</p>\n"
    return text + _plots(plots) + _details("Reliability as tables", "".join(tables))


def _hierarchy(part: Figures, view: str) -> str:
    tree = part["hierarchy"]
    scores = _table(
        "Of the answered category and all above it, in percent (Kiritchenko et al. 2006)",
        ["", "labelled", "precision", "recall", "F1"],
        [["Category tree", str(tree["num"]), *(_percent(tree, key) for key in ("precision", "recall", "f1"))]],
    )
    names = ["never" if m["depth"] is None else f"at depth {m['depth']}" for m in tree["mistakes"]]
    rows = [
        [name, str(mistake["num"]), _percent(mistake, "share")]
        for name, mistake in zip(names, tree["mistakes"], strict=True)
    ]
    title = "Where the answered path first leaves the truth"
    return scores + _beside(
        _shares(tree["mistakes"], names, "share", key=f"{view}-mistakes", title=title, view=view),
        _table(title, ["first wrong step", view + "s", "share"], rows),
    )


def _frequency(part: Figures, view: str) -> str:
    frequency = part["frequency"]
    rows = [
        [
            f"{third['name']}: {third['num_categories']} categories of {third['least_photos']} to "
            f"{third['most_photos']} photos",
            str(third["num"]),
            _percent(third, "macro"),
            _percent(third, "top1"),
        ]
        for third in frequency["parts"]
    ]
    title = "Leaf categories in three equal parts by how many photos they have"
    text = f"<p>Counted on {escape(frequency['counted_on'])}.</p>\n"
    names = [third["name"] for third in frequency["parts"]]
    return text + _beside(
        _shares(frequency["parts"], names, "macro", key=f"{view}-frequency", title="Macro accuracy", view=view),
        _table(title, ["", view + "s", "macro", "top-1"], rows),
    )


def _brand(part: Figures, view: str) -> str:
    brand = part["brand"]
    names = {"branded": "of a brand of the taxonomy", "unbranded": "without brand", "unseen": "of an unseen brand"}
    rows = [
        [
            f"{view.title()}s {name}",
            str(brand[f"num_{key}"]),
            *(_percent(brand, f"{figure}_{key}") for figure in ("top1", "none_known", "filled", "filled_wrong")),
        ]
        for key, name in names.items()
    ]
    header = ["", "labelled", "right", "answered “none that I know”", "filled in", "filled in wrongly"]
    return _table("Brand in percent; for an unseen brand only “none that I know” is right", header, rows)


def _confusions(part: Figures, view: str) -> str:
    rows = [
        [f"{escape(pair['truth_path'])} → {escape(pair['answer_path'])}", str(pair["num"]), _percent(pair, "share")]
        for pair in part["confusions"]
    ]
    if not rows:
        return "<p>No leaf category was taken for another.</p>\n"
    table = _table("Most frequent mistakes", ["truth → answer", view + "s", "of the true category"], rows)
    return table + (_pairs(part["confusions"]) if view == "listing" else "")


def _pairs(confusions: Sequence[Figures]) -> str:
    """The photos of each pair side by side."""
    small = thumbnails(
        (url for pair in confusions for url in (*pair["photos"], *pair["photos_of_answer"])), max_px=_PHOTO_PX
    )
    cards = []
    for pair in confusions:
        truth, answer = pair["truth_path"], pair["answer_path"]
        taken = "".join(image(small[url], f"{truth}, taken for {answer}") for url in pair["photos"])
        true = "".join(image(small[url], f"Truly {answer}") for url in pair["photos_of_answer"])
        cards.append(
            f'<li tabindex="0">\n<h4>{escape(truth)} → {escape(answer)}: {pair["num"]} of {pair["num_truth"]}</h4>\n'
            f'<div class="pair"><div><p class="small">{escape(truth)}, taken for {escape(answer)}</p>{taken}</div>'
            f'<div><p class="small">truly {escape(answer)}</p>{true or "<p>not among these listings</p>"}</div></div>\n'
            "</li>\n"
        )
    return f"<ol>\n{''.join(cards)}</ol>\n"


def _slices(part: Figures, view: str) -> str:
    parts = []
    for number, by in enumerate(dict.fromkeys(row["by"] for row in part["slices"])):
        slices = [row for row in part["slices"] if row["by"] == by]
        rows = [
            [
                escape(row["name"]),
                str(row["num"]),
                *(_percent(row, key) for key in ("leaf_top1", "hierarchical_f1", "brand_top1")),
            ]
            for row in slices
        ]
        header = [escape(by), view + "s", "leaf top-1", "hierarchical F1", "brand top-1"]
        largest = sorted(slices, key=lambda row: -row["num"])[:_MOST_SLICES_PLOTTED]
        shown = [row for row in slices if row in largest]
        title = f"Hierarchical F1 by {by}"
        names = [row["name"] for row in shown]
        plot = _shares(shown, names, "hierarchical_f1", key=f"{view}-slice-{number}", title=title, view=view)
        parts.append(_beside(plot, _table(f"By {escape(by)}", header, rows)))
    return "".join(parts)


_SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("accuracy", "Accuracy", _accuracy),
    ("selective", "Precision and coverage", _selective),
    ("hierarchy", "Mistakes in the tree", _hierarchy),
    ("frequency", "Frequent and rare categories", _frequency),
    ("calibration", "Calibration", _calibration),
    ("brand", "Brand", _brand),
    ("confusions", "Most confused categories", _confusions),
    ("slices", "Slices", _slices),
)


def _levels(part: Figures) -> Iterator[tuple[str, Figures]]:
    depths = sorted((key for key in part if re.fullmatch(r"depth_\d+", key)), key=lambda key: int(key[6:]))
    for name in ("leaf", *depths):
        yield name, part[name]


def _field_name(name: str) -> str:
    if name in ("leaf", BRAND_FIELD):
        return {"leaf": "Leaf category", BRAND_FIELD: "Brand"}[name]
    return f"Category, depth {name.rpartition('_')[2]}"


def _shares(rows: Sequence[Figures], names: Sequence[str], figure: str, *, key: str, title: str, view: str) -> str:
    known = [(name, row) for name, row in zip(names, rows, strict=True) if not _is_missing(row[figure])]
    if not known:
        return ""
    said = ", ".join(f"{name} {_number(row[figure])} %" for name, row in known)
    svg = shares_plot(
        [name for name, _ in known],
        [row[figure] for _, row in known],
        [row[f"{figure}_interval"] for _, row in known],
        key=key,
        label=f"{title} per {view}: {said}.",
    )
    return _figure(svg, escape(title))


def _figure(svg: str, caption_html: str) -> str:
    return f"<figure>\n<figcaption>{caption_html}</figcaption>\n{svg}\n</figure>\n"


def _plots(figures_html: Sequence[str]) -> str:
    return f'<div class="plots">\n{"".join(figures_html)}</div>\n'


def _beside(*parts_html: str) -> str:
    return f'<div class="plots">\n{"".join(f"<div>{part}</div>" for part in parts_html)}</div>\n'


def _details(summary: str, body_html: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n{body_html}</details>\n"


def _table(caption_html: str, header_html: Sequence[str], rows_html: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header_html)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        for name, *cells in rows_html
    )
    # Wide tables scroll by themselves; whoever has no mouse reaches them with the tab key.
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="Table: {re.sub("<[^>]*>", "", caption_html)}">\n'
        f"<table>\n<caption>{caption_html}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n"
        "</table>\n</div>\n"
    )


def _is_missing(value: float | None) -> bool:
    return value is None or value != value


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _percent(row: Figures, name: str) -> str:
    """A figure in percent with its interval, as HTML."""
    if _is_missing(row[name]):
        return "–"
    low, high = row[f"{name}_interval"]
    return f'{_number(row[name])} <span class="small">{_number(low)}–{_number(high)}</span>'
