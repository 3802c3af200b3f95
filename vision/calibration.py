"""Temperatures and certified thresholds of one model: `calibration.json` of a bundle."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vision.errors import BundleError

__all__ = [
    "BRAND_FIELD",
    "PATH_FIELD",
    "Calibration",
    "DepthEvidence",
    "FieldGuarantee",
    "Histogram",
    "OutcomeEvidence",
    "OutcomeTest",
    "UncertifiedCode",
    "get_field_name",
]

SCHEMA_VERSION = 2
BRAND_FIELD = "brand"
PATH_FIELD = "category_path"
"""The guarantee for all category levels together: the deepest that is prefilled."""
_REASON_KEY = "why_not"
"""`FieldGuarantee.uncertified_reason` in the file, whose format is frozen."""


UncertifiedCode = Literal[
    "NOT_CERTIFIED", "CERTIFICATE_VOID", "RELEASE_UNHEALTHY", "PARENT_NOT_PREFILLED", "ONLY_CATEGORY"
]
"""Why a field has no threshold: values of the contract's NotPrefilledReason, without its prefix."""
_NEWER_KEYS: dict[str, Any] = {
    "uncertified_code": "NOT_CERTIFIED",
    "num_required": None,
    "depths": (),
    "num_below_truth": 0,
    "unlabelled_coverage": None,
    "outcomes": None,
}
"""Default by key. Defaults are omitted, so that the version of earlier calibrations stays what it was."""


def get_field_name(depth: int) -> str:
    return f"category_depth_{depth}"


@dataclass(frozen=True, kw_only=True)
class DepthEvidence:
    """What a path guarantee's threshold fills of the calibration listings at one depth; guaranteed is the path."""

    depth: int
    """1 for the roots."""
    num_listings: int
    """Calibration listings whose suggestion reaches this depth and whose truth is known there."""
    num_filled: int
    num_errors: int


@dataclass(frozen=True, kw_only=True)
class OutcomeTest:
    """What the outcomes of hidden listings say about one threshold."""

    threshold: float
    num_filled: int
    """Hidden listings that the threshold fills."""
    num_errors: int
    """How many of them are wrong, or not known to be right: without outcome, or with an inner category as outcome."""
    num_unknown: int
    """How many of these errors are not known to be wrong."""
    certifying: float
    """Highest evidence so far that the threshold keeps its guarantee; enough at 1 / delta."""
    withdrawing: float
    """Highest evidence so far that it does not, in which unknown ones count as right."""
    stakes: tuple[float, ...]
    """What the bets against the threshold stand at; they go on from here with the next outcome."""
    depths: tuple[DepthEvidence, ...] = ()
    """For a path: what it fills at each depth, as in `FieldGuarantee`."""


@dataclass(frozen=True, kw_only=True)
class OutcomeEvidence:
    """Evidence for a field's grid that grows with the outcomes of hidden listings."""

    delta: float
    """Highest probability that outcomes certify a threshold that is wrong too often. Kept from the test on calibration
    listings, and fixed before the first outcome like the grid."""
    wait_days: int
    """Days after a listing's first suggestion in which its outcome must be reported."""
    first: "FieldGuarantee | None" = None
    """The guarantee from the calibration listings alone. None: no outcome has been read, and it is the field's own."""
    num_listings: int = 0
    """Hidden listings whose waiting time is over."""
    until_us: int = 0
    """Listings whose first suggestion was made by then are counted, and not read again; microseconds since 1970."""
    tests: tuple[OutcomeTest, ...] = ()
    """One a threshold of the grid, in its order; empty: no outcome has been read."""


@dataclass(frozen=True, kw_only=True)
class FieldGuarantee:
    """The guarantee for one field of the seller's form: the path of categories, a depth of the tree, or the brand.

    A path is wrong if its deepest filled category is neither the true one nor an ancestor of it.
    """

    name: str
    """`category_path`, or `category_depth_1` …; or `brand`."""
    alpha: float
    """Highest guaranteed share of wrong values among filled ones."""
    delta: float
    """Highest probability, over the draw of the calibration listings, that the share exceeds `alpha`."""
    threshold: float | None
    """The field is filled when the probability is at least this. None: never filled, only suggested; except that a
    depth with one category for all is filled when the next depth is."""
    num_listings: int
    """Calibration listings with a known truth for this field."""
    num_filled: int
    """How many of them the threshold fills."""
    num_errors: int
    """How many of the filled ones were wrong."""
    bound: float | None = None
    """Clopper-Pearson upper bound of the share of errors among filled, at level `delta`. None: never filled."""
    grid: tuple[float, ...] = ()
    """Thresholds that the tests could choose from, in their order; fixed before any label was read."""
    num_unlabelled: int = 0
    """Calibration listings left out because their truth for this field is not known."""
    uncertified_reason: str = ""
    """Why the field is never filled; empty when it is."""
    uncertified_code: UncertifiedCode = "NOT_CERTIFIED"
    """The same for machines; without meaning when there is a threshold."""
    num_required: int | None = None
    """Filled calibration listings, all right, that the test needs to pass. None: not known."""
    depths: tuple[DepthEvidence, ...] = ()
    """For a path: the evidence at each depth from the roots down. Empty: never filled, or no path."""
    num_below_truth: int = 0
    """For a path: how many of the errors are a filled category below the known truth, an inner node: perhaps right."""

    unlabelled_coverage: float | None = None
    """Share of the unlabelled listings that the threshold fills, if the calibration listings were drawn among those
    that it fills. None: they were not."""

    outcomes: OutcomeEvidence | None = None
    """What outcomes of hidden listings may certify, and have. None: nothing. Where they decided on the threshold, all
    counts are of hidden listings, and `bound` is `alpha`."""

    @property
    def first(self) -> "FieldGuarantee":
        """The guarantee from the calibration listings alone."""
        if self.outcomes is None or self.outcomes.first is None:
            return replace(self, outcomes=None)
        return self.outcomes.first

    @property
    def decided_by_outcomes(self) -> bool:
        """Whether the threshold is another than that from the calibration listings."""
        return self.threshold != self.first.threshold

    @property
    def coverage(self) -> float:
        """Share of listings that the threshold fills: of the calibration listings, or of those they were drawn from."""
        if self.unlabelled_coverage is not None:
            return self.unlabelled_coverage
        return self.num_filled / self.num_listings if self.num_listings else 0.0


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How a value is distributed over listings."""

    edges: tuple[float, ...]
    """K ascending edges between the bins; a value on an edge belongs to the bin above it."""
    shares: tuple[float, ...]
    """K + 1 shares of the listings, one a bin; they sum to 1."""
    num_values: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures and guarantees of one model; `calibration.json` of a bundle."""

    category_temperature: float = 1.0
    category_depth_temperatures: tuple[float, ...] = ()
    """D values, one a depth from the roots down: the temperature of a node's share among its siblings, applied after
    the temperature of the leaves. Empty: all 1."""
    brand_temperature: float = 1.0
    brand_fusion: Literal["mean", "max"] = "mean"
    category_log_prior: tuple[float, ...] = ()
    """C values added to the logits of a model trained with logit adjustment, whose scores are balanced: log shares of
    the leaves in training (Menon et al. 2021). Empty: none."""
    brand_log_prior: tuple[float, ...] = ()
    """The same for brands, B values."""
    unknown_brand_below: float | None = None
    """If the fused logit of the likeliest brand is below this, the brand is unknown (maximum logit score, Vaze et
    al. 2022). None: never."""
    scope_threshold: float | None = None
    """A photo with a lower scope score is out of scope, and nothing is filled for a listing of such photos alone. None:
    every photo is in scope."""
    agreement_limit: float | None = None
    """A photo contradicts a step of its listing's path if it gives the step less than this share of the probability
    that it gives the likeliest category at that depth; no step that is contradicted is filled. None: none is."""
    fields: tuple[FieldGuarantee, ...] = ()
    delta: float | None = None
    """Highest probability, over the draw of the calibration listings, that any of the guarantees is false. None: the
    sum over the fields."""
    certifies: Mapping[str, str]
    """What the guarantees hold for: sha256 of the model file, preprocessing fingerprint, precision, backend, splits."""
    expected: Mapping[str, Histogram] = field(default_factory=dict)
    """Histograms of the calibration listings by name; drift is measured against them."""

    @functools.cached_property
    def version(self) -> str:
        """Return twelve hex digits that change with any temperature, threshold or certified fact."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @functools.cached_property
    def category_log_prior_array(self) -> npt.NDArray[np.float64] | None:
        """(C,) `category_log_prior`; None where it is empty."""
        return np.array(self.category_log_prior) if self.category_log_prior else None

    @functools.cached_property
    def brand_log_prior_array(self) -> npt.NDArray[np.float64] | None:
        """(B,) `brand_log_prior`; None where it is empty."""
        return np.array(self.brand_log_prior) if self.brand_log_prior else None

    @functools.cached_property
    def _fields_by_name(self) -> Mapping[str, FieldGuarantee]:
        return {field.name: field for field in self.fields}

    def field(self, name: str) -> FieldGuarantee | None:
        return self._fields_by_name.get(name)

    def get_category_guarantee(self, depth: int) -> FieldGuarantee | None:
        """Return the guarantee whose threshold decides at a depth, 1 for the roots: of the path, or of the depth."""
        return self.field(PATH_FIELD) or self.field(get_field_name(depth))

    def get_category_thresholds(self, max_depth: int) -> npt.NDArray[np.float64]:
        """Return the (max_depth,) thresholds of the depths from the roots down; infinite where none is filled."""
        thresholds = self._thresholds_by_depths.get(max_depth)
        if thresholds is None:
            guarantees = [self.get_category_guarantee(depth) for depth in range(1, max_depth + 1)]
            thresholds = np.array(
                [np.inf if one is None or one.threshold is None else one.threshold for one in guarantees]
            )
            self._thresholds_by_depths[max_depth] = thresholds
        return thresholds

    @functools.cached_property
    def _thresholds_by_depths(self) -> dict[int, npt.NDArray[np.float64]]:
        return {}

    @property
    def total_delta(self) -> float:
        """Highest probability that any of the guarantees is false."""
        return sum(field.delta for field in self.fields) if self.delta is None else self.delta

    def void(self, reason: str, *, code: UncertifiedCode = "CERTIFICATE_VOID") -> "Calibration":
        """Return the same temperatures without any guarantee, so that nothing is filled."""
        fields = (
            replace(field, threshold=None, uncertified_reason=reason, uncertified_code=code, outcomes=None)
            for field in self.fields
        )
        return replace(self, fields=tuple(fields))

    def list_rule(self) -> dict[str, Any]:
        """Return what the scores, the gates and the plan for outcomes follow from; no evidence is part of it.

        Empty if outcomes can certify nothing.
        """
        plans = [
            {"alpha": first.alpha, "threshold": first.threshold, "grid": first.grid}
            | {"name": first.name, "delta": field.outcomes.delta, "wait_days": field.outcomes.wait_days}
            for field in self.fields
            if field.outcomes
            for first in (field.first,)
        ]
        evidence = ("fields", "delta", "certifies", "expected")
        own = {name: value for name, value in asdict(self).items() if name not in evidence}
        return {**own, "plans": plans} if plans else {}

    def to_json(self) -> str:
        raw = asdict(self)
        raw["fields"] = [_write_field(one) for one in raw["fields"]]
        # Omitted, so that the version of earlier calibrations stays what it was.
        for key, default in (("expected", {}), ("delta", None), ("scope_threshold", None), ("agreement_limit", None)):
            if raw[key] == default:
                del raw[key]
        return json.dumps({"schema_version": SCHEMA_VERSION, **raw}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Read what `to_json` wrote.

        Raises:
            BundleError: another schema version, or not a calibration.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw.pop("schema_version", None) != SCHEMA_VERSION:
                raise BundleError(
                    f"calibration: schema_version is not {SCHEMA_VERSION}, the one this version reads; "
                    "`listing-vision export` the run again"
                )
            return cls(
                **{
                    **raw,
                    "category_depth_temperatures": tuple(raw["category_depth_temperatures"]),
                    "category_log_prior": tuple(raw["category_log_prior"]),
                    "brand_log_prior": tuple(raw["brand_log_prior"]),
                    "fields": tuple(map(_read_field, raw["fields"])),
                    "expected": {
                        name: Histogram(
                            edges=tuple(spread["edges"]),
                            shares=tuple(spread["shares"]),
                            num_values=spread["num_values"],
                        )
                        for name, spread in raw.get("expected", {}).items()
                    },
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"calibration is not readable: {error}") from error


def _write_field(raw: Mapping[str, Any]) -> dict[str, Any]:
    written = _rename_key(raw, "uncertified_reason", _REASON_KEY)
    if (outcomes := raw["outcomes"]) and outcomes["first"]:
        written["outcomes"] = {**outcomes, "first": _write_field(outcomes["first"])}
    return {key: value for key, value in written.items() if key not in _NEWER_KEYS or value != _NEWER_KEYS[key]}


def _read_field(raw: Mapping[str, Any]) -> FieldGuarantee:
    outcomes = raw.get("outcomes")
    return FieldGuarantee(
        **{
            **_rename_key(raw, _REASON_KEY, "uncertified_reason"),
            "grid": tuple(raw["grid"]),
            "depths": tuple(DepthEvidence(**depth) for depth in raw.get("depths", ())),
            "outcomes": outcomes and _read_outcomes(outcomes),
        }
    )


def _read_outcomes(raw: Mapping[str, Any]) -> OutcomeEvidence:
    first = raw["first"] and _read_field(raw["first"])
    return OutcomeEvidence(**{**raw, "first": first, "tests": tuple(map(_read_test, raw["tests"]))})


def _read_test(raw: Mapping[str, Any]) -> OutcomeTest:
    depths = tuple(DepthEvidence(**depth) for depth in raw["depths"])
    return OutcomeTest(**{**raw, "stakes": tuple(raw["stakes"]), "depths": depths})


def _rename_key(raw: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in raw.items()}
