import dataclasses

from prometheus_client.parser import text_string_to_metric_families

from training.outcomes.report import Drift
from training.outcomes.text_report import GUARANTEE_METRICS, format_metrics, format_report


def test_the_report_names_what_is_broken_and_drifting(report):
    text = format_report(report)
    assert text.startswith("Switch off category, depth 3 of old: sellers kept ")
    assert "drift of bytes per photo, last 7 days compared with the first: " in text
    assert "sample ratio: as assigned (p = 1)" in text
    bundles = Drift(statistic="leaf_probability", release="old", stability=0.01, chance=0.02)
    shadowed = dataclasses.replace(report, drift=[bundles], shadow_agreement={"shadow": (180, 0.75)})
    text = format_report(shadowed)
    chance = "none beyond chance, which reaches 0.020 with so many listings"
    assert f"drift of leaf probability, old recently compared with its bundle: 0.010 ({chance})" in text
    assert "shadow shadow: 75.0% of 180 suggestions equal what the caller got" in text


def test_guarantees_are_written_for_prometheus(report):
    families = {family.name: family.samples for family in text_string_to_metric_families(format_metrics(report))}
    assert set(families) == set(GUARANTEE_METRICS)
    kept = {(s.labels["field"], s.labels["model_release"]): s.value for s in families["listing_vision_guarantee_met"]}
    assert kept == {("category_depth_3", "old"): 0, ("category_depth_3", "new"): 1}
