"""The file in which a supervisor states its traffic split for other processes of its tree."""

import json
from pathlib import Path

from serving.rollout.traffic_split import TrafficSplit
from vision.runtime.files import write_atomically

__all__ = ["read_traffic_split", "write_traffic_split"]

_NAME = "traffic_split.json"


def write_traffic_split(folder: Path, traffic_split: TrafficSplit) -> None:
    write_atomically(folder / _NAME, json.dumps(traffic_split.to_dict()))


def read_traffic_split(folder: Path) -> TrafficSplit:
    return TrafficSplit.from_dict(json.loads((folder / _NAME).read_text()))
