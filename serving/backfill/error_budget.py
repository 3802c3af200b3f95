"""Stop a job in which too large a share of the photos fails."""

from collections import Counter, deque
from collections.abc import Mapping

from serving.backfill.output import ShardTables
from serving.errors import BackfillError

__all__ = ["ErrorBudget"]

WINDOW_PHOTOS = 1000
"""The share is that of the last so many photos, so that an outage of the photo store is noticed soon in a long job."""


class ErrorBudget:
    """Counts failed photos over a sliding window of shards."""

    def __init__(self, max_share: float, num_photos: int) -> None:
        """Args:
        num_photos: photos of the whole job; the share is taken of so many, or of the window, at least.
        """
        self._max_share = max_share
        self._min_photos = min(WINDOW_PHOTOS, num_photos)
        self._recent: deque[tuple[int, Mapping[str, int]]] = deque()

    def check(self, rows: ShardTables, num_photos: int) -> None:
        """Count a shard of so many photos; raise BackfillError where too many of the last photos failed."""
        self._recent.append((num_photos, rows.errors))
        while len(self._recent) > 1 and self._count_photos() - self._recent[0][0] >= WINDOW_PHOTOS:
            self._recent.popleft()
        num_recent = self._count_photos()
        errors: Counter[str] = Counter()
        for _, found in self._recent:
            errors.update(found)
        share = errors.total() / max(num_recent, self._min_photos)
        if share <= self._max_share:
            return
        shown = ", ".join(f"{reason} {number}" for reason, number in errors.most_common())
        example = rows.dead_letters.slice(0, 1).to_pylist()
        raise BackfillError(
            f"{errors.total()} of the last {num_recent} photos cannot be used ({share:.1%}, --max-error-share "
            f"{self._max_share:g}): {shown}"
            + "".join(f"\n  such as {row['photo']}: {row['message']}" for row in example)
            + "\nfix the cause, or raise --max-error-share, and rerun the same command: committed shards stay, these "
            "photos are read again"
        )

    def _count_photos(self) -> int:
        return sum(number for number, _ in self._recent)
