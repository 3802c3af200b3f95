"""The figures of docs/capacity.md are those of the committed result."""

import json

from tests.conftest import ROOT


def test_its_figures_are_those_of_the_committed_result():
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks" / "results" / "capacity.json").read_text())
    details, metrics = result["details"], result["metrics"]
    for row in details["check"]["by_share"].values():
        values = [row[f"{kind}_{name}_ms"] for name in ("p50", "p99") for kind in ("measured", "simulated")]
        assert "| {:.0f} ms | {:.0f} ms | {:.0f} ms | {:.0f} ms |".format(*values) in page
    assert f"{metrics['peak_photos_per_s']:.1f} photos/s" in page
    ratios = (metrics[f"simulated_to_measured_p99_{which}"] for which in ("least", "most"))
    assert "between {:.2f} and {:.2f} of what was measured".format(*ratios) in page
    upload, backfill = details["upload"], details["backfill"]
    gateways = upload["gateways_of_16_cores"]
    assert f"**{upload['cores']} cores, {gateways} gateways of 16, and {upload['instances']} GPU**" in page
    assert f"p50 {upload['p50_ms']:.0f} ms" in page
    assert f"**{backfill['cores']:.0f} cores and {backfill['gpus']:.0f} GPU**" in page
