"""The traffic split is read as it was written."""

from pathlib import Path

from serving.rollout.routes_file import read_traffic_split, write_traffic_split
from serving.rollout.traffic_split import ReleaseSpec, TrafficShare, TrafficSplit


def test_the_traffic_split_is_read_as_it_was_written(tmp_path):
    release = ReleaseSpec(label="a", bundle=Path("/bundles/a"), model_name="m")
    other = ReleaseSpec(label="b", bundle=Path("/bundles/b"), model_name="m")
    split = TrafficSplit(releases=(release, other), stable="a", canary=TrafficShare(label="b", share=0.25))
    write_traffic_split(tmp_path, split)
    assert read_traffic_split(tmp_path) == split
    write_traffic_split(tmp_path, TrafficSplit(releases=(release,), stable="a"))
    assert read_traffic_split(tmp_path).canary is None
