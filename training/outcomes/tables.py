"""Suggestions joined with what sellers chose, from the files that gateways write (docs/contracts.md)."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.reporting.provenance import format_time
from vision.calibration import BRAND_FIELD, PATH_FIELD, get_field_name
from vision.errors import ListingVisionError
from vision.taxonomy import Taxonomy

__all__ = ["FieldOutcomes", "OutcomeTables", "ShadowOutcomes", "open_tables"]

_MEMORY_LIMIT = "2GB"
_TABLES = ("suggestions", "outcomes", "shadows")
_RELEASE = "model_version || coalesce('.' || left(calibration_version, 6), '')"
"""SQL of `Bundle.release`."""
_NEWER_COLUMNS = (
    "SELECT NULL::BOOL AS hidden, NULL::VARCHAR AS rule_version, NULL::INT AS num_fillable, "
    "NULL::BOOL AS brand_fillable, NULL::BOOL AS ancestor_given WHERE FALSE"
)
"""SQL of no row with the columns that files of earlier versions lack, and that are null in their rows."""


@dataclass(frozen=True, kw_only=True)
class FieldOutcomes:
    """Outcomes of one field in the order of their time: N listings whose outcome decides on the field."""

    field: str
    time_us: npt.NDArray[np.int64]
    releases: npt.NDArray[np.str_]
    """The `Bundle.release` that made the suggestion."""
    accepted: npt.NDArray[np.bool_]
    """Whether the seller kept or chose the suggestion."""
    filled: npt.NDArray[np.bool_]
    hidden: npt.NDArray[np.bool_]
    """Whether nothing was shown, so that the suggestion did not influence the choice."""
    scores: npt.NDArray[np.float64]
    """Confidence of the suggestion."""


@dataclass(frozen=True, kw_only=True)
class ShadowOutcomes:
    """Outcomes of a shadow's suggestions beside those of the suggestions shown: N listings in the order of time."""

    releases: npt.NDArray[np.str_]
    """The shadow's releases."""
    accepted: npt.NDArray[np.bool_]
    """Whether the seller chose what the shadow suggested."""
    shown_accepted: npt.NDArray[np.bool_]
    """Whether the seller chose the suggestion that was shown."""
    hidden: npt.NDArray[np.bool_]
    """Whether nothing was shown; otherwise the suggestion that was shown has an advantage."""


class OutcomeTables:
    """An opened folder of suggestions and outcomes."""

    def __init__(self, connection: Any, max_depth: int, digest: str) -> None:
        self._connection = connection
        self._max_depth = max_depth
        self._digest = digest

    def describe(self) -> dict[str, str]:
        """The time of the first suggestion and of the last, and the sha256 of the files' names and sizes."""
        first_us, last_us = self._connection.execute(
            "SELECT epoch_us(min(time)), epoch_us(max(time)) FROM suggestions"
        ).fetchone()
        return {
            "first_suggestion": format_time(first_us / 1e6),
            "last_suggestion": format_time(last_us / 1e6),
            "files_sha256": self._digest,
        }

    def list_fields(self) -> list[str]:
        """The fields of the form, root level first, brand last."""
        return [*(get_field_name(depth) for depth in range(1, self._max_depth + 1)), BRAND_FIELD]

    def load_outcomes(self, field: str) -> FieldOutcomes:
        """Load the outcomes of one of `list_fields`, or of `PATH_FIELD`: only listings with a prefilled category.

        The path is accepted if its deepest prefilled category is an ancestor of the seller's choice, or the choice.
        """
        accepted, filled, score, treatment = _build_columns(field, self.list_fields())
        columns = self._connection.execute(
            f"""
            SELECT epoch_us(chosen_at) AS time_us, release, {accepted} AS accepted, {filled} AS filled,
                {score} AS score, {treatment} = 'HIDDEN' AS hidden
            FROM joined WHERE release IS NOT NULL AND {accepted} IS NOT NULL ORDER BY chosen_at, listing_id
            """
        ).fetchnumpy()
        return FieldOutcomes(
            field=field,
            time_us=np.asarray(columns["time_us"], np.int64),
            releases=np.asarray(columns["release"], str),
            accepted=np.asarray(columns["accepted"], bool),
            filled=np.asarray(columns["filled"], bool),
            hidden=np.asarray(columns["hidden"], bool),
            scores=np.asarray(columns["score"], np.float64),
        )

    def load_shadows(self, field: str) -> ShadowOutcomes:
        """Outcomes of listings that a shadow saw too, where the outcome decides on both suggestions."""
        accepted, _, _, treatment = _build_columns(field, self.list_fields())
        columns = self._connection.execute(
            f"""
            WITH shadow AS (
                    SELECT listing_id, release, {accepted} AS accepted FROM joined_shadows WHERE release IS NOT NULL
                ),
                given AS (
                    SELECT listing_id, chosen_at, {accepted} AS accepted, {treatment} = 'HIDDEN' AS hidden FROM joined
                )
            SELECT shadow.release, shadow.accepted, given.accepted AS shown_accepted, hidden
            FROM shadow JOIN given USING (listing_id)
            WHERE shadow.accepted IS NOT NULL AND given.accepted IS NOT NULL ORDER BY chosen_at, listing_id
            """
        ).fetchnumpy()
        return ShadowOutcomes(
            releases=np.asarray(columns["release"], str),
            accepted=np.asarray(columns["accepted"], bool),
            shown_accepted=np.asarray(columns["shown_accepted"], bool),
            hidden=np.asarray(columns["hidden"], bool),
        )

    def measure_shadow_agreement(self) -> dict[str, tuple[int, float]]:
        """For each shadow, its number of suggestions and the share equal to what the caller got, category and brand."""
        rows = self._connection.execute(
            """
            SELECT shadow.release, count(*), avg((
                shadow.category_ids = given.category_ids AND shadow.brand_kind = given.brand_kind
                AND coalesce(shadow.brand_id, '') = coalesce(given.brand_id, ''))::INT)
            FROM shadows shadow ASOF JOIN suggestions given
                ON shadow.listing_id = given.listing_id AND shadow.time >= given.time
            GROUP BY 1 ORDER BY 1
            """
        ).fetchall()
        return {release: (int(count), float(same)) for release, count, same in rows}

    def load_choices(self) -> list[dict[str, Any]]:
        """The last outcome of each listing: ids, and whether its seller did not see the category, or the brand."""
        query = """
            SELECT listing_id, chosen_category AS category_id, chosen_brand_kind AS brand_kind,
                chosen_brand AS brand_id, chosen_brand_name AS brand_name,
                coalesce(category_treatment = 'HIDDEN', false) AS category_hidden,
                coalesce(brand_treatment = 'HIDDEN', false) AS brand_hidden
            FROM joined ORDER BY listing_id
        """
        return self.fetch_rows(query)

    def count_listings(self) -> dict[str, int]:
        """Distinct listings that each release made a suggestion for."""
        rows = self._connection.execute(
            "SELECT release, count(DISTINCT listing_id) FROM suggestions GROUP BY 1 ORDER BY 1"
        ).fetchall()
        return dict(rows)

    def fetch_rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query on the views `suggestions`, `outcomes`, `shadows` and `joined`, by column name."""
        columns = self._connection.execute(query, list(parameters))
        names = [column[0] for column in columns.description]
        return [dict(zip(names, row, strict=True)) for row in columns.fetchall()]

    @property
    def num_outcomes(self) -> int:
        """Outcomes that are taken; of each listing the last one counts."""
        return int(self._query_value("SELECT count(*) FROM outcomes"))

    @property
    def num_left_out(self) -> int:
        """Outcomes that are left out because they have no valid suggestion id."""
        return int(self._query_value("SELECT count(*) FROM all_outcomes")) - self.num_outcomes

    def count_unjoined(self) -> int:
        """Listings that have an outcome but no suggestion."""
        return int(self._query_value("SELECT count(*) FROM joined WHERE release IS NULL"))

    def load_statistic(
        self, expression: str, *, days: int, from_end: bool, release: str | None = None
    ) -> npt.NDArray[np.float64]:
        """Values of the suggestions in the first or the last days.

        Args:
            expression: SQL on the columns of `suggestions`.
            days: length of the window.
            from_end: take the last days.
            release: only suggestions of this one; None: of any.
        """
        bound, sign, compare = ("max", "-", ">") if from_end else ("min", "+", "<")
        columns = self._connection.execute(
            f"""
            SELECT ({expression})::DOUBLE AS value FROM suggestions
            WHERE time {compare} (SELECT {bound}(time) FROM suggestions) {sign} INTERVAL {int(days)} DAY
                AND ($1 IS NULL OR release = $1)
            """,
            [release],
        ).fetchnumpy()
        values = np.ma.filled(np.ma.asarray(columns["value"], np.float64), np.nan)
        return np.asarray(values[np.isfinite(values)])

    def measure_span_days(self) -> float:
        """Days between the first suggestion and the last."""
        found = self._query_value("SELECT coalesce(epoch(max(time)) - epoch(min(time)), 0) / 86400 FROM suggestions")
        return float(found)

    def _query_value(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()[0]


@contextmanager
def open_tables(
    url: str, taxonomies: Mapping[str, Taxonomy], *, include_unverified: bool = False
) -> Iterator[OutcomeTables]:
    """Open the tables lazily: a query reads the columns that it needs, and spills to disk beyond 2 GB.

    Args:
        url: what `serve --outcomes` was given: a folder, or any fsspec URL.
        taxonomies: by release. The place of a category that a release's taxonomy lacks, and of all categories of a
            release that is not among them, is taken from the first taxonomy that has it.
        include_unverified: take outcomes without a valid suggestion id too. Anybody who can call the service may have
            reported them.

    Raises:
        ListingVisionError: there are no suggestions, or the files cannot be read.
    """
    import duckdb
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    sizes = {table: _find_sizes(fs, f"{root}/{table}") for table in _TABLES}
    files = {table: list(found) for table, found in sizes.items()}
    for table, found in files.items():
        if not found and table != "shadows":
            raise ListingVisionError(f"{url} holds no {table}; `serve --outcomes {url}` records them")
    with duckdb.connect(config={"memory_limit": _MEMORY_LIMIT}) as connection:
        if "file" not in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
            connection.register_filesystem(fs)
            files = {table: [fs.unstrip_protocol(path) for path in found] for table, found in files.items()}
        try:
            for table, found in files.items():
                release = "" if table == "outcomes" else f", {_RELEASE} AS release"
                source = f"read_parquet({found!r}, union_by_name=true)" if found else "suggestions WHERE FALSE"
                columns = "*" if found else "* EXCLUDE (release)"
                name = "all_outcomes" if table == "outcomes" else table
                newer = "" if table == "outcomes" else f" UNION ALL BY NAME {_NEWER_COLUMNS}"
                connection.execute(f"CREATE VIEW {name} AS SELECT {columns}{release} FROM {source}{newer}")
            condition = "" if include_unverified else "WHERE suggestion_id_status = 'VALID'"
            connection.execute(f"CREATE VIEW outcomes AS SELECT * FROM all_outcomes {condition}")
            _create_views(connection, taxonomies)
            max_depth = max(taxonomy.max_depth for taxonomy in taxonomies.values())
            tables = OutcomeTables(connection, max_depth, _compute_digest(root, sizes))
            if tables.num_left_out and not tables.num_outcomes:
                raise ListingVisionError(
                    f"none of the {tables.num_left_out} outcomes in {url} has a valid suggestion_id: report outcomes "
                    "with the suggestion_id of their response, or give --include-unverified"
                )
            yield tables
        except duckdb.Error as error:
            raise ListingVisionError(f"{url} cannot be read: {str(error).splitlines()[0]}") from error


def _find_sizes(fs: Any, folder: str) -> dict[str, int]:
    """Path and bytes of each file of a table."""
    found = fs.glob(f"{folder}/*/*.parquet", detail=True)
    return {path: int(found[path]["size"]) for path in sorted(found)}


def _compute_digest(root: str, sizes: Mapping[str, Mapping[str, int]]) -> str:
    """The sha256 of the files' names below the root and their sizes: a gateway writes a file once."""
    named = [f"{path.removeprefix(root)} {size}\n" for files in sizes.values() for path, size in files.items()]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def _create_views(connection: Any, taxonomies: Mapping[str, Taxonomy]) -> None:
    """Create the views that join the last outcome of each listing with the last suggestion before it."""
    connection.execute("CREATE TABLE lineages (release VARCHAR, category_id VARCHAR, lineage VARCHAR[])")
    others: dict[str, list[str]] = {}
    for release, taxonomy in taxonomies.items():
        own = {c.id: [one.id for one in taxonomy.get_lineage(c.id)] for c in taxonomy.categories}
        connection.executemany("INSERT INTO lineages VALUES (?, ?, ?)", [(release, *item) for item in own.items()])
        others = own | others
    connection.execute("CREATE TABLE other_lineages (category_id VARCHAR, lineage VARCHAR[])")
    connection.executemany("INSERT INTO other_lineages VALUES (?, ?)", list(others.items()))
    # A signed outcome names its suggestion; another one is taken for that of the last suggestion before it.
    for view, answers, until in (("joined", "suggestions", "until"), ("joined_shadows", "shadows", "time")):
        connection.execute(
            f"""
        CREATE VIEW {view} AS
        WITH last AS (
            SELECT * EXCLUDE (place) FROM (
                SELECT *, row_number() OVER (PARTITION BY listing_id ORDER BY time DESC) AS place FROM outcomes
            ) WHERE place = 1
        ),
        chosen AS (
            SELECT o.*, coalesce(e.time, o.time) AS until
            FROM last o LEFT JOIN suggestions e ON e.suggestion_uid = o.suggestion_uid
        )
        SELECT o.listing_id, o.time AS chosen_at, o.category_id AS chosen_category, o.brand_kind AS chosen_brand_kind,
            o.brand_id AS chosen_brand, o.brand_name AS chosen_brand_name,
            {_build_treatment("category")}, {_build_treatment("brand")},
            coalesce(own.lineage, other.lineage) AS lineage, s.* EXCLUDE (listing_id, time)
        FROM chosen o
        ASOF LEFT JOIN {answers} s ON o.listing_id = s.listing_id AND o.{until} >= s.time
        LEFT JOIN lineages own ON own.category_id = o.category_id AND own.release = s.release
        LEFT JOIN other_lineages other ON other.category_id = o.category_id
        """
        )


def _build_treatment(field: str) -> str:
    """SQL of a treatment: hidden too, if nothing else is reported, where the request said that it would be."""
    column = f"{field}_treatment"
    return f"CASE WHEN s.hidden AND o.{column} = 'UNSPECIFIED' THEN 'HIDDEN' ELSE o.{column} END AS {column}"


def _build_columns(field: str, fields: Sequence[str]) -> tuple[str, str, str, str]:
    """SQL for accepted, filled, score and treatment of a field."""
    if field == PATH_FIELD:
        accepted = (
            "CASE WHEN lineage IS NULL OR ancestor_given OR num_filled = 0 THEN NULL "
            "ELSE list_contains(lineage, category_ids[num_filled]) END"
        )
        return accepted, "num_filled > 0", "category_probabilities[num_filled]", "category_treatment"
    return _build_brand_columns() if field == BRAND_FIELD else _build_category_columns(fields.index(field) + 1)


def _build_category_columns(depth: int) -> tuple[str, str, str, str]:
    """SQL for accepted, filled, score and treatment.

    A step is unknown below the category that the seller chose, where that is on the suggested path. The outcome says
    nothing about a path that had to lie below a category of the request.
    """
    step = f"category_ids[{depth}]"
    accepted = (
        f"CASE WHEN lineage IS NULL OR ancestor_given OR len(category_ids) < {depth} THEN NULL "
        f"WHEN list_contains(lineage, {step}) THEN TRUE "
        "WHEN list_contains(category_ids, chosen_category) THEN NULL ELSE FALSE END"
    )
    return accepted, f"num_filled >= {depth}", f"category_probabilities[{depth}]", "category_treatment"


def _build_brand_columns() -> tuple[str, str, str, str]:
    accepted = (
        "CASE WHEN chosen_brand_kind IS NULL THEN NULL WHEN brand_kind = 'OTHER' THEN chosen_brand_kind = 'OTHER' "
        "ELSE brand_kind = chosen_brand_kind AND coalesce(brand_id, '') = coalesce(chosen_brand, '') END"
    )
    return accepted, "brand_filled", "brand_probability", "brand_treatment"
