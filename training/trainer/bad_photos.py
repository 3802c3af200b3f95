"""Training photos that cannot be used, counted over all ranks and epochs."""

import json
import logging
from collections.abc import Iterable

from training.errors import RunError
from training.run import Run
from training.trainer.distributed import Ranks
from training.trainer.loading.dataloader import Batch

__all__ = ["BadPhotos"]

_log = logging.getLogger(__name__)


class BadPhotos:
    """Rows of unusable training photos. Each counts once, however many ranks and epochs it appears in."""

    def __init__(self, run: Run, ranks: Ranks, *, num_photos: int, max_share: float) -> None:
        self._run, self._ranks = run, ranks
        self._num_photos, self._max_share = num_photos, max_share
        self._new_rows: set[int] = set()
        self.rows: set[int] = set()
        """Rows of all ranks as of the last `merge`, counted from 1."""

    @property
    def num_new(self) -> int:
        """Rows that this rank has recorded since the last `merge`."""
        return len(self._new_rows)

    def record(self, batches: Iterable[Batch]) -> None:
        """Take over the problems of this rank's batches and write them to the run's folder."""
        for problem in (json.loads(text) for batch in batches for text in batch.problems if text):
            if problem["row"] not in self.rows | self._new_rows:
                self._new_rows.add(problem["row"])
                self._run.append_bad_photo(problem, rank=self._ranks.rank)
                _log.warning("%s cannot be used (%s); replaced", problem["photo"], problem["reason"])

    def merge(self) -> None:
        """Exchange the new rows with all ranks; every rank must call it."""
        self.rows |= set().union(*self._ranks.gather(self._new_rows))
        self._new_rows = set()

    def require_few(self) -> None:
        """Raises RunError if more than the allowed share of the photos cannot be used."""
        if len(self.rows) > self._max_share * self._num_photos:
            raise RunError(
                f"{len(self.rows)} of {self._num_photos} training photos cannot be used, more than the share of "
                f"{self._max_share:g} that is allowed; they are named in {self._run.folder}/bad_photos*.jsonl; repair "
                "them, or raise --max-bad-photo-share"
            )
