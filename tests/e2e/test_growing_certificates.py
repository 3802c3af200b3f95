"""A certificate that grows: the writer's records of hidden listings, `calibrate --from-outcomes`, what is served."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from listing_vision.cli import app
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.listing_request import ListingRequest
from serving.api.responses import ResponseOptions, build_response
from serving.api.suggestion_id import SuggestionSigner
from serving.outcomes.writer import Recorder
from tests.support.gateway import PHOTO, run_gateway
from tests.support.outcomes import read_table
from tests.support.predictions import create_predictions
from training.calibration.certify import Guarantee
from training.export.recalibrate import recalibrate
from vision.attestation import build_attestation
from vision.bundle import load_bundle
from vision.engine import Logits
from vision.manifest import UNLABELLED, Labels

DAY_NS = 86_400_000_000_000


def create_logits(bundle, leaves, rng):
    """(N, C) logits that name a leaf each, some with little confidence."""
    num = len(leaves)
    logits = rng.normal(0, 0.1, (num, len(bundle.taxonomy.leaf_ids))).astype(np.float32)
    logits[np.arange(num), leaves] += rng.uniform(1, 12, num)
    return logits


def create_labelled(bundle, num, rng):
    """Listings that are right where the model is confident, and half of the time elsewhere."""
    taxonomy = bundle.taxonomy
    leaves = rng.integers(0, len(taxonomy.leaf_ids), num)
    logits = create_logits(bundle, leaves, rng)
    unsure = (logits.max(axis=1) < 6) & (rng.random(num) < 0.5)
    nodes = np.array([taxonomy.node_index[leaf] for leaf in taxonomy.leaf_ids])
    roots = taxonomy.leaf_paths[:, 0]
    others = np.array([nodes[roots != roots[leaf]][0] for leaf in leaves])
    labels = Labels(category_nodes=np.where(unsure, others, nodes[leaves]), brands=np.full(num, UNLABELLED))
    made = create_predictions(np.zeros((num, 4)), np.zeros(num, int))
    brand_logits = np.zeros((num, len(taxonomy.brand_labels)), np.float32)
    return replace(made, category_logits=logits, brand_logits=brand_logits, labels=labels)


def certify(bundle, folder, **guarantee):
    rng = np.random.default_rng(0)
    return recalibrate(
        bundle,
        folder,
        tune=create_labelled(bundle, 300, rng),
        tested=create_labelled(bundle, 400, rng),
        split="calibrate",
        backend="onnxruntime-cpu",
        guarantee=Guarantee(**{"outcomes_delta": 0.02} | guarantee),
    )


@pytest.fixture(scope="module")
def certified(bundle, tmp_path_factory):
    """Certified on 400 labelled listings, with two fifths of delta kept for outcomes."""
    return certify(bundle, tmp_path_factory.mktemp("certified") / "bundle")


class Shop:
    """Classifies listings with a bundle and reports outcomes, through the gateway's writer.

    `calibrate` reads them `read_after_days` later, and the next ones are sold after that.
    """

    def __init__(self, url, monkeypatch, read_after_days=15):
        self.url, self.rng = str(url), np.random.default_rng(1)
        self._now_ns = time.time_ns()
        self._signer = SuggestionSigner.with_random_key(validity_s=30 * 86_400)
        monkeypatch.setattr("serving.outcomes.records.time", SimpleNamespace(time_ns=self._tick))
        read_at = SimpleNamespace(time_ns=lambda: self._now_ns + read_after_days * DAY_NS)
        monkeypatch.setattr("listing_vision.calibrate.time", read_at)

    def _tick(self):
        self._now_ns += 1_000_000_000
        return self._now_ns

    def sell(self, bundle, num, *, right, hidden=True, name="listing"):
        self._now_ns += 20 * DAY_NS
        recorder, leaves = Recorder(self.url), self.rng.integers(0, len(bundle.taxonomy.leaf_ids), num)
        for number, (leaf, logits) in enumerate(zip(leaves, create_logits(bundle, leaves, self.rng), strict=True)):
            response = answer(bundle, logits, listing_id=f"{name}-{number}")
            signed, uid = self._signer.sign(listing_id=response.listing_id, caller="", model=response.model)
            request = pb.ClassifyListingRequest(listing_id=response.listing_id, hidden=hidden)
            recorder.record_suggestion(
                ListingRequest.create(request), response, uid=uid, rule_version=bundle.rule_version
            )
            chosen = bundle.taxonomy.leaf_ids[leaf] if right else find_other_root(bundle.taxonomy, leaf)
            outcome = pb.ReportOutcomeRequest(suggestion_id=signed, category_id=chosen)
            recorder.record_outcome(outcome, *self._signer.verify(signed, caller=""), [bundle.taxonomy], caller="")
        recorder.close()


def answer(bundle, category_logits, listing_id=""):
    brands = np.zeros((1, len(bundle.taxonomy.brand_labels)), np.float32)
    logits = Logits(category_logits[None], brands, np.zeros((1, 1), np.float32), np.ones(1, np.float32))
    return build_response(bundle, [None], logits, ResponseOptions(listing_id=listing_id))


def find_other_root(taxonomy, leaf):
    roots = taxonomy.leaf_paths[:, 0]
    return taxonomy.leaf_ids[int(np.flatnonzero(roots != roots[leaf])[0])]


def count_filled(bundle, num=200):
    """Levels that a bundle prefills for some listings."""
    rng = np.random.default_rng(2)
    logits = create_logits(bundle, rng.integers(0, len(bundle.taxonomy.leaf_ids), num), rng)
    return sum(step.action == pb.ACTION_PREFILL for row in logits for step in answer(bundle, row).category_path)


def calibrate(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def grow(bundle, url, output):
    done = calibrate(bundle.folder, "--from-outcomes", url, "--output", output)
    assert done.exit_code == 0, done.exception or done.output
    return load_bundle(output), done.output


def test_right_outcomes_fill_deeper_and_wrong_ones_take_it_away(certified, tmp_path, monkeypatch):
    first = certified.calibration.field("category_path")
    shop = Shop(tmp_path / "outcomes", monkeypatch)
    shop.sell(certified, 600, right=True)
    grown, output = grow(certified, shop.url, tmp_path / "grown")
    path = grown.calibration.field("category_path")
    assert path.threshold < first.threshold
    assert count_filled(grown) > count_filled(certified)
    assert path.delta == pytest.approx(first.delta + 0.01)
    assert "by outcomes: a confidence of" in output
    assert f"the calibration listings alone certified {first.threshold:.3f}" in output
    assert "outcomes: 600 listings that were hidden before the answer" in output
    assert "Category, by outcomes: a confidence of" in (grown.folder / "model_card.md").read_text()
    counted_on = {one["field"]: one["counted_on"] for one in build_attestation(grown)["predicate"]["guarantees"]}
    assert counted_on == {"category_path": "hidden listings", "brand": "calibration listings"}
    # The grown bundle is served; its records continue the evidence, and a later reading does not begin again.
    assert grown.rule_version == certified.rule_version != ""
    shop.sell(grown, 100, right=True, name="more")
    again, _ = grow(grown, shop.url, tmp_path / "again")
    assert again.calibration.field("category_path").outcomes.num_listings == 700
    assert again.calibration.field("category_path").threshold <= path.threshold
    shop.sell(again, 150, right=False, name="worse")
    worse, output = grow(again, shop.url, tmp_path / "worse")
    assert "Category: never prefilled, only suggested: withdrawn by outcomes: of 850 hidden listings" in output
    assert count_filled(worse) == 0
    sure = create_logits(worse, np.zeros(1, int), np.random.default_rng(0))[0]
    reasons = {step.not_prefilled.message.partition(":")[0] for step in answer(worse, sure).category_path}
    assert "withdrawn by outcomes" in reasons


def test_records_that_are_no_evidence_are_refused_by_name(bundle, certified, tmp_path, monkeypatch):
    shop = Shop(tmp_path / "shown", monkeypatch)
    shop.sell(certified, 3, right=True, hidden=False)
    refused = calibrate(certified.folder, "--from-outcomes", shop.url, "--output", tmp_path / "no")
    assert "no suggestion was marked as hidden by its request" in str(refused.exception)
    other = certify(bundle, tmp_path / "other", alpha_category=0.04)
    shop = Shop(tmp_path / "other-rule", monkeypatch)
    shop.sell(other, 3, right=True)
    refused = calibrate(certified.folder, "--from-outcomes", shop.url, "--output", tmp_path / "no")
    assert f"by the rule of this bundle, {certified.rule_version}, but by others: {other.release} (3)" in (
        str(refused.exception)
    )
    refused = calibrate(bundle.folder, "--from-outcomes", shop.url, "--output", tmp_path / "no")
    assert "keeps no part of delta for outcomes" in str(refused.exception)
    assert certified.for_backend("another").rule_version == ""
    shop = Shop(tmp_path / "young", monkeypatch, read_after_days=13)
    shop.sell(certified, 3, right=True)
    refused = calibrate(certified.folder, "--from-outcomes", shop.url, "--output", tmp_path / "no")
    assert "of those that are not counted yet, is 14 days old" in str(refused.exception)
    changed = calibrate(certified.folder, "--from-outcomes", shop.url, "--delta", 0.1, "--output", tmp_path / "no")
    assert changed.exit_code == 2
    assert "leave delta out" in changed.output
    assert not (tmp_path / "no").exists()


def test_the_gateway_records_the_mark_and_the_rule(certified, tmp_path):
    async def run():
        async with run_gateway(certified, outcomes=str(tmp_path)) as (_, client):
            await client.classify([PHOTO], listing_id="hidden", hidden=True)
            await client.classify([PHOTO], listing_id="shown")

    asyncio.run(run())
    rows = {row["listing_id"]: row for row in read_table(tmp_path, "suggestions")}
    assert {name: row["hidden"] for name, row in rows.items()} == {"hidden": True, "shown": False}
    assert {row["rule_version"] for row in rows.values()} == {certified.rule_version}
