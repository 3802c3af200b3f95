"""The identity of a backfill job, the same for every engine and every run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from serving.errors import BackfillError
from serving.storage import Store
from vision.bundle import Bundle

__all__ = ["JOB_PATH", "LOCK_PATH", "SCHEMA_VERSION", "Job", "ModelVersions", "read_job"]

SCHEMA_VERSION = 1
"""Version of all files that a backfill writes."""
JOB_PATH = "_job/job.json"
LOCK_PATH = "_job/lock"


@dataclass(frozen=True, kw_only=True)
class ModelVersions:
    """What computes the suggestions; a backfill has suggestions of one model only."""

    name: str
    version: str
    taxonomy: str
    calibration: str
    backend: str
    """What computes the logits. A threshold certified for another backend is not used, so nothing is prefilled."""

    @classmethod
    def from_bundle(cls, bundle: Bundle, backend: str) -> "ModelVersions":
        return cls(
            name=bundle.info.model_name,
            version=bundle.info.model_version,
            taxonomy=bundle.taxonomy.version,
            calibration=bundle.calibration_version,
            backend=backend,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    manifest: str
    manifest_sha256: str
    base_url: str
    """Folder or URL that relative photo paths start from."""
    model: ModelVersions
    listings_per_shard: int
    top_k: int
    """Number of likeliest leaves written for each listing; 0: none."""
    embedding: bool
    """Whether each listing's mean embedding is written."""
    num_listings: int
    num_photos: int
    num_shards: int

    def save(self, store: Store) -> None:
        store.write_json(JOB_PATH, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    def require_match(self, found: Mapping[str, Any]) -> None:
        """Raise BackfillError where a value differs from this job's.

        Args:
            found: values of some of this class' fields.
        """
        differing = [
            f"{name}: {_format_value(getattr(self, name))} then, {_format_value(value)} now"
            for name, value in found.items()
            if getattr(self, name) != value
        ]
        if differing:
            raise BackfillError(
                "this output holds another backfill; give another --output, or --overwrite to delete what is there:\n"
                + "\n".join(f"  {line}" for line in differing)
            )


def read_job(store: Store) -> Job:
    """Read the job of an output.

    Raises:
        BackfillError: there is none, or it has another schema.
    """
    try:
        raw = store.read_json(JOB_PATH)
    except FileNotFoundError:
        raise BackfillError(f"{store.url} holds no backfill: {JOB_PATH} is missing") from None
    if raw.pop("schema_version", None) != SCHEMA_VERSION:
        raise BackfillError(f"{store.url}: schema_version is not {SCHEMA_VERSION}, the one this version reads")
    try:
        return Job(**{**raw, "model": ModelVersions(**raw["model"])})
    except (TypeError, KeyError) as error:
        raise BackfillError(f"{store.full_path(JOB_PATH)} is not readable: {error}") from error


def _format_value(value: Any) -> str:
    if isinstance(value, ModelVersions):
        return " ".join(f"{field.name} {getattr(value, field.name)}" for field in fields(value))
    return repr(value)
