import dataclasses

from training.outcomes.verdict import build_experiment_verdict


def test_what_to_switch_off_stands_first_then_what_differs_and_what_drifted(report):
    first, compared, drifted = build_experiment_verdict(report)
    assert first.startswith("Switch off category, depth 3 of old: sellers kept ")
    assert first.endswith(" that were filled in, and 95.0% is guaranteed.")
    assert compared.startswith("new compared with old: better for category, depth 2 (+")
    assert compared.endswith("; no difference found yet for category, depth 1.")
    assert drifted.startswith("Drifted: bytes per photo (large).")


def test_where_nothing_is_broken_or_known_it_says_so(report):
    kept = [dataclasses.replace(one, meets_guarantee=True if one.guaranteed else None) for one in report.fields]
    quiet = dataclasses.replace(report, fields=kept, comparisons=[], drift=[])
    first, last = build_experiment_verdict(quiet)
    assert first.startswith("Nothing to switch off: ")
    assert last.startswith("Drift was not measured: ")
    unknown = [dataclasses.replace(one, guaranteed=None) for one in kept]
    assert build_experiment_verdict(dataclasses.replace(quiet, fields=unknown))[0].startswith("No guarantee could be")


def test_listings_assigned_in_other_shares_make_comparisons_worthless(report):
    broken = dataclasses.replace(report, sample_ratio_p_value=1e-6)
    assert build_experiment_verdict(broken)[1].startswith("Trust no comparison before its cause is found")
