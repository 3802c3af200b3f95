"""The confusion matrix as tables of a page: the worst block first, and the whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vision.taxonomy import PATH_SEPARATOR

__all__ = ["MAX_MATRIX", "build_confusion_blocks", "choose_sample_errors"]

MAX_MATRIX = 100
"""Categories of the largest matrix that is shown as one; of more, only the cells that are not empty are listed."""
_MAX_SAMPLED = 24
"""Categories whose errors are shown with photos."""

Figures = Mapping[str, Any]


def build_confusion_blocks(part: Figures) -> dict[str, Any]:
    """Tables of one view's `confusion_matrix`.

    Returns:
        `worst`: the categories of the parent within which most mistakes stay, None without such a mistake; `whole`,
        None with more than `MAX_MATRIX` categories; `mistakes`: all cells off the diagonal, the largest first.
    """
    categories: Sequence[Figures] = part["categories"]
    by_id = {one["category"]: one for one in categories}
    cells = {(cell["truth"], cell["answer"]): cell["num"] for cell in part["confusion_matrix"]}
    mistakes = {pair: num for pair, num in cells.items() if pair[0] != pair[1]}
    within: Counter[str] = Counter()
    for (truth, answer), num in mistakes.items():
        if by_id[truth]["parent"] == by_id[answer]["parent"]:
            within[by_id[truth]["parent"]] += num
    parent = within.most_common(1)[0][0] if within else None
    siblings = [one for one in categories if one["parent"] == parent]
    return {
        "worst": _build_table(siblings, cells, title=parent or "the top level") if within else None,
        "whole": _build_table(categories, cells, title="") if len(categories) <= MAX_MATRIX else None,
        "mistakes": [
            {"name": f"{by_id[truth]['path']} → {by_id[answer]['path']}", "num": num}
            for (truth, answer), num in sorted(mistakes.items(), key=lambda cell: -cell[1])
        ],
    }


def choose_sample_errors(categories: Sequence[Figures]) -> list[Figures]:
    """The categories with the most mistakes, which have sample errors."""
    with_errors = [one for one in categories if one["errors"]]
    return sorted(with_errors, key=lambda one: -one["num"] * (1 - one["recall"]))[:_MAX_SAMPLED]


def _build_table(categories: Sequence[Figures], cells: Mapping[tuple[str, str], int], *, title: str) -> dict[str, Any]:
    names = [one["path"].removeprefix(f"{one['parent']}{PATH_SEPARATOR}") for one in categories]
    ids = [one["category"] for one in categories]
    rows = [[cells.get((truth, answer), 0) for answer in ids] for truth in ids]
    return {"title": title, "names": names, "rows": list(zip(names, rows, strict=True))}
