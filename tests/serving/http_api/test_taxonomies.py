import dataclasses
import logging
import shutil

from serving.http_api.taxonomies import Taxonomies
from serving.rollout.routes_file import write_traffic_split
from serving.rollout.traffic_split import ReleaseSpec, TrafficSplit


def test_versions_are_found_and_stay_known(bundle, tmp_path, caplog):
    copied = shutil.copytree(bundle.folder, tmp_path / "bundle")
    spec = ReleaseSpec(label="a", bundle=copied, model_name="m")
    broken = ReleaseSpec(label="broken", bundle=tmp_path / "gone", model_name="m")
    write_traffic_split(tmp_path, TrafficSplit(releases=(spec, broken), stable="a"))
    taxonomies = Taxonomies(tmp_path)
    version = bundle.taxonomy.version
    with caplog.at_level(logging.ERROR):
        assert taxonomies.find("nowhere") is None
        assert taxonomies.find(version) == bundle.taxonomy
        assert taxonomies.find("nowhere") is None
    assert sum("broken" in record.getMessage() for record in caplog.records) == 1
    shutil.rmtree(copied)
    assert taxonomies.find(version) == bundle.taxonomy
    assert Taxonomies(tmp_path).find(version) is None


def test_a_release_that_is_loaded_later_is_found(bundle, tmp_path):
    first = TrafficSplit(releases=(ReleaseSpec(label="a", bundle=tmp_path, model_name="m"),), stable="a")
    write_traffic_split(tmp_path, first)
    taxonomies = Taxonomies(tmp_path)
    assert taxonomies.find(bundle.taxonomy.version) is None
    second = ReleaseSpec(label="b", bundle=bundle.folder, model_name="m")
    write_traffic_split(tmp_path, dataclasses.replace(first, releases=(*first.releases, second)))
    assert taxonomies.find(bundle.taxonomy.version) == bundle.taxonomy
