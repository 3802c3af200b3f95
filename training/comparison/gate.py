"""The release gate: how much a new model may lose against the old one. A small TOML or YAML file."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from training.comparison.compare import LEAF, CategoryChange, Comparison, CoverageChange
from training.errors import GateError
from training.reporting.field_titles import format_field_title, join_field_titles
from training.statistics.paired import Difference
from vision.calibration import BRAND_FIELD
from vision.runtime.wording import format_count

__all__ = ["Gate", "RuleResult", "load_gate"]

_ROUNDING_TOLERANCE = 1e-9
"""Tolerance for rounding, so that a drop of exactly the limit passes."""


@dataclass(frozen=True, kw_only=True)
class RuleResult:
    name: str
    """The field of `Gate`."""
    holds: bool
    num_checked: int
    """Fields or categories that the rule was measured on; with 0, the rule holds."""
    details: tuple[str, ...]
    """The violations with their numbers; or, where the rule holds, what was measured."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Drops are from A to B, as shares: 0.01 is one percentage point. A drop of exactly the limit passes."""

    max_overall_drop: float = 0.0
    """Highest drop of the leaf accuracy over all listings. Without a listing to measure it on, the rule is broken."""
    max_category_drop: float = 0.1
    """Highest drop of the leaf accuracy of any one category; 1 disables the rule."""
    min_category_listings: int = 20
    """Categories with fewer listings are exempt from `max_category_drop`: one listing of five is a drop of 0.2."""
    max_brand_drop: float = 0.0
    """Highest drop of the brand accuracy."""
    max_coverage_drop: float = 0.0
    """Highest drop of the share of listings that are prefilled, for every depth and the brand."""

    def __post_init__(self) -> None:
        for name in ("max_overall_drop", "max_category_drop", "max_brand_drop", "max_coverage_drop"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 <= value <= 1):
                raise GateError(f"{name} = {value!r}: use a share in 0..1")
        value = self.min_category_listings
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise GateError(f"min_category_listings = {value!r}: use a whole number, at least 1")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str) -> "Gate":
        """Build from plain values.

        Raises:
            GateError: an unknown rule, with the nearest known one, or a wrong value.
        """
        known = [field.name for field in fields(cls)]
        for name in raw:
            if name not in known:
                nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
                raise GateError(
                    f"{source}: unknown rule {name!r}; nearest known: {nearest!r}; all: {', '.join(sorted(known))}"
                )
        try:
            return cls(**raw)
        except GateError as error:
            raise GateError(f"{source}: {error}") from None

    def check(self, comparison: Comparison) -> tuple[RuleResult, ...]:
        """The result of each rule; the gate is passed when all hold."""
        overall, brand = comparison.field(LEAF).counts, comparison.field(BRAND_FIELD).counts
        return (
            self._check_overall(overall),
            self._check_categories(comparison.categories),
            _check_accuracy("max_brand_drop", "brand accuracy", brand, self.max_brand_drop),
            self._check_coverage(comparison.coverage),
        )

    def _check_overall(self, counts: Difference) -> RuleResult:
        if counts.num_listings == 0:
            detail = (
                "leaf accuracy: no listing with a leaf category that both models know, so the rule cannot be verified"
            )
            return RuleResult(name="max_overall_drop", holds=False, num_checked=0, details=(detail,))
        return _check_accuracy("max_overall_drop", "leaf accuracy", counts, self.max_overall_drop)

    def _check_categories(self, changes: Iterable[CategoryChange]) -> RuleResult:
        enough = [change for change in changes if change.counts.num_listings >= self.min_category_listings]
        broken = [change for change in enough if _exceeds(-change.counts.change, self.max_category_drop)]
        measured = (
            f"{format_count(len(enough), 'category')} with at least "
            f"{format_count(self.min_category_listings, 'listing')}"
        )
        return RuleResult(
            name="max_category_drop",
            holds=not broken,
            num_checked=len(enough),
            details=tuple(_describe_drop(c.name, c.counts, self.max_category_drop) for c in broken) or (measured,),
        )

    def _check_coverage(self, changes: Sequence[CoverageChange]) -> RuleResult:
        filled = [change for change in changes if change.a.num_filled]
        broken = [c for c in filled if _exceeds(c.a.coverage - c.b.coverage, self.max_coverage_drop)]
        texts = tuple(_describe_coverage_drop(change, self.max_coverage_drop) for change in broken)
        if broken and not any(change.b.is_certified for change in changes):
            names = join_field_titles(change.name for change in broken)
            texts = (f"B has no certificate: it fills nothing in, where A fills in {names}; calibrate B",)
        measured = f"coverage: A fills in {format_count(len(filled), 'field')}"
        return RuleResult(
            name="max_coverage_drop", holds=not broken, num_checked=len(filled), details=texts or (measured,)
        )


def load_gate(path: Path) -> Gate:
    """Load a gate from TOML or YAML, by the file's ending.

    Raises:
        GateError: not found, another ending, not readable, an unknown rule or a wrong value.
    """
    readers = {".toml": _read_toml, ".yaml": _read_yaml, ".yml": _read_yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise GateError(f"gate {path}: ending {path.suffix!r} is not one of {', '.join(readers)}")
    if not path.is_file():
        raise GateError(f"no gate at {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise GateError(f"gate {path} is not UTF-8: {error}") from error
    return Gate.from_dict(reader(text, path), source=f"gate {path}")


def _read_toml(text: str, path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GateError(f"gate {path} is not TOML: {error}") from error


def _read_yaml(text: str, path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise GateError(f"gate {path} is not YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise GateError(f"gate {path}: found a {type(raw).__name__} instead of rules; write each as `name: value`")
    return raw


def _check_accuracy(name: str, what: str, counts: Difference, limit: float) -> RuleResult:
    if counts.num_listings == 0:
        measured = f"{what}: no listing to measure it on"
        return RuleResult(name=name, holds=True, num_checked=0, details=(measured,))
    holds = not _exceeds(-counts.change, limit)
    return RuleResult(name=name, holds=holds, num_checked=1, details=(_describe_drop(what, counts, limit),))


def _exceeds(drop: float, limit: float) -> bool:
    return drop > limit + _ROUNDING_TOLERANCE


def _describe_drop(what: str, counts: Difference, limit: float) -> str:
    return (
        f"{what} {_format_change(counts.change, limit)}: A {counts.accuracy_a:.2%}, B {counts.accuracy_b:.2%}; "
        f"{counts.num_lost} lost, {counts.num_won} won of "
        f"{format_count(counts.num_listings, 'listing')}, p {counts.p_value:.3g}"
    )


def _describe_coverage_drop(change: CoverageChange, limit: float) -> str:
    a, b = change.a, change.b
    return (
        f"{format_field_title(change.name)}: the filled share {_format_change(b.coverage - a.coverage, limit)}: "
        f"A {a.coverage:.2%} ({a.num_filled} of {format_count(a.num_listings, 'listing')}), "
        f"B {b.coverage:.2%} ({b.num_filled})"
    )


def _format_change(change: float, limit: float) -> str:
    points = f"{100 * abs(change):.2f}"
    if float(points) == 0:
        return "did not change"
    return f"{'fell' if change < 0 else 'rose'} by {points} points, a fall of {100 * limit:.2f} is allowed"
