"""The README's table of what a card computes, from the committed result: `python -m benchmarks.gpu.table`."""

import json
from typing import Any

from benchmarks.common import RESULTS

__all__ = ["table"]

_NAMES = {"tf32": "TF32"}


def table(result: dict[str, Any]) -> str:
    """Markdown: photos/s of the model alone, a row a precision, a column a batch size."""
    rates: dict[str, dict[str, float]] = result["details"]["model_photos_per_s"]
    batches = sorted({int(size) for row in rates.values() for size in row})
    lines = [["photos/s, batch of", *map(str, batches)], ["---", *["---:"] * len(batches)]]
    for name, row in rates.items():
        figures = [f"{row[str(size)]:,.0f}" if str(size) in row else "" for size in batches]
        lines.append([_NAMES.get(name, name), *figures])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table(json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))))
