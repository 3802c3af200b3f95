"""Tables of recorded suggestions, shadows and outcomes."""

from pathlib import Path

import pyarrow.dataset


def read_table(folder: Path, name: str) -> list[dict]:
    return pyarrow.dataset.dataset(folder / name, format="parquet").to_table().to_pylist()
