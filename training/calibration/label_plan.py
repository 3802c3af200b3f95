"""A plan of listings to label: one threshold a field, and listings drawn among those that it fills."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.calibration.certify import Guarantee, certify, complete_fields, create_uncertified
from training.calibration.field_rows import FieldRows
from training.calibration.threshold_tests import FieldTests
from vision.bundle import Bundle, certificate_binding
from vision.calibration import FieldGuarantee
from vision.errors import ListingVisionError
from vision.runtime.files import write_atomically
from vision.taxonomy import Taxonomy

__all__ = ["LabelPlan", "PlannedField", "certify_planned"]

SCHEMA_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlannedField:
    """The only threshold that the labels of a field's listings may test."""

    name: str
    threshold: float
    coverage: float
    """Share of the unlabelled listings that the threshold fills."""
    listing_ids: tuple[str, ...]
    """Drawn uniformly among those that it fills."""


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """What `calibrate-plan` writes beside the listings to label, and `calibrate --plan` tests."""

    guarantee: Guarantee
    binding: Mapping[str, str]
    """What the scores were computed with, as `certificate_binding` names it."""
    calibration_version: str
    """Names the temperatures and gates that the thresholds are for."""
    fields: tuple[PlannedField, ...]

    @property
    def listing_ids(self) -> frozenset[str]:
        """The listings of all fields together."""
        return frozenset(name for field in self.fields for name in field.listing_ids)

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "LabelPlan":
        """Read what `save` wrote.

        Raises:
            ListingVisionError: no plan, or one of another schema version.
            OSError: the file cannot be read.
        """
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop("schema_version", None) != SCHEMA_VERSION:
                raise ListingVisionError(
                    f"plan {path}: schema_version is not {SCHEMA_VERSION}, the one this version reads; plan again"
                )
            fields = tuple(PlannedField(**{**one, "listing_ids": tuple(one["listing_ids"])}) for one in raw["fields"])
            return cls(**{**raw, "guarantee": Guarantee(**raw["guarantee"]), "fields": fields})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ListingVisionError(
                f"plan {path} is not readable, give the file that `calibrate-plan` wrote: {error}"
            ) from error

    def require_made_for(self, bundle: Bundle, *, backend: str, guarantee: Guarantee) -> None:
        """Check that the scores of the plan are those that are tested, and that the guarantee is the planned one.

        Raises:
            ListingVisionError: another model, backend, calibration or guarantee.
        """
        found = certificate_binding(bundle.info, bundle.sha256, backend=backend)
        planned = {**self.binding, "calibration_version": self.calibration_version}
        for name, value in {**found, "calibration_version": bundle.calibration_version}.items():
            if planned.get(name) != value:
                raise ListingVisionError(
                    f"the plan was made for {name} {planned.get(name)}, not {value}: its listings were drawn by other "
                    "scores; give the bundle, backend and rendition that it was made with, or plan again"
                )
        for name, value in asdict(guarantee).items():
            if (wanted := getattr(self.guarantee, name)) != value:
                raise ListingVisionError(
                    f"the plan was made for {name} {wanted}, not {value}; give --{name.replace('_', '-')} {wanted}, or "
                    "plan again"
                )


def certify_planned(
    plan: LabelPlan, rows: FieldRows, listing_ids: Sequence[str], taxonomy: Taxonomy
) -> list[FieldGuarantee]:
    """Return the guarantee of each field, each tested at its planned threshold and no other.

    A listing of the plan that is missing, has no label for the field or is no longer filled counts as wrong.

    Args:
        plan: thresholds and listings, from before the labels were known.
        rows: labelled listings; those that the plan does not name for a field are not used for it.
        listing_ids: ids of `rows`.
        taxonomy: that of the model.
    """
    alphas = plan.guarantee.list_alphas(taxonomy)
    chosen = {field.name: np.isin(np.array(listing_ids), np.array(field.listing_ids)) for field in plan.fields}
    tests = []
    for planned in plan.fields:
        num, threshold = len(planned.listing_ids), planned.threshold
        num_labelled = int((chosen[planned.name] & rows.find_known(planned.name)).sum())
        if num_labelled < num:
            _log.warning(
                "%s: %d of %d planned listings are missing or have no label, and count as wrong",
                planned.name,
                num - num_labelled,
                num,
            )
        tests.append(
            _count_absent_as_wrong(
                rows.build_tests(planned.name, alphas[planned.name], (threshold,), chosen[planned.name]), num
            )
        )
    found = {
        name: create_uncertified(name, alpha, 0.0, "the plan has no listings for this field")
        for name, alpha in alphas.items()
    }
    for planned, field in zip(plan.fields, certify(tests, delta=plan.guarantee.delta), strict=True):
        coverage = None if field.threshold is None else planned.coverage
        found[planned.name] = replace(rows.add_depths(field, chosen[planned.name]), unlabelled_coverage=coverage)
    return complete_fields(found, taxonomy, plan.guarantee)


def _count_absent_as_wrong(tests: FieldTests, num_planned: int) -> FieldTests:
    def count(threshold: float) -> tuple[int, int]:
        num_filled, num_errors = tests.count(threshold)
        return num_planned, num_errors + num_planned - num_filled

    return replace(tests, count=count, num_listings=num_planned)
