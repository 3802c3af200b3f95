"""Where the figures of a run are shown beside its folder: TensorBoard, MLflow, Weights & Biases, or a tracker of one's
own."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from training.errors import RunError
from training.run import Run
from vision.runtime.files import write_atomically

__all__ = ["RunEnd", "TensorBoard", "Tracker", "Trackers", "create_trackers"]

_log = logging.getLogger(__name__)

RunEnd = Literal["finished", "interrupted", "failed"]
_IDS_FILE = "trackers.json"
"""In the run's folder: its id with each service, under which a resumed run reports."""


class Tracker(Protocol):
    """Takes the figures of a run, on the first rank alone."""

    def begin(self, run: Run, *, first_step: int) -> None:
        """Connect, before the first step.

        Args:
            run: its settings are recorded already.
            first_step: more than 0 for a resumed run; later steps that were logged before are repeated.
        """

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Take figures by name, such as `train/loss` and `epoch/val_leaf_top1`; `step` counts those done."""

    def end(self, how: RunEnd) -> None:
        """Disconnect."""


class TensorBoard:
    """Writes `tensorboard/` into the run's folder."""

    def begin(self, run: Run, *, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        # Drops what an interrupted run wrote about steps that are repeated.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=first_step, flush_secs=10)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def end(self, how: RunEnd) -> None:
        self._writer.close()


class _Mlflow:
    """As MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say."""

    def begin(self, run: Run, *, first_step: int) -> None:
        import mlflow

        ids = _read_ids(run)
        started = mlflow.start_run(
            run_id=ids.get("mlflow"),
            run_name=None if "mlflow" in ids else run.name,
            nested=mlflow.active_run() is not None,  # a caller's own run in the same process
        )
        self._id = started.info.run_id
        _write_ids(run, {**ids, "mlflow": self._id})
        mlflow.log_params(_flatten(run.read_settings()))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        import mlflow

        mlflow.log_metrics(dict(figures), step=step, run_id=self._id)

    def end(self, how: RunEnd) -> None:
        import mlflow

        mlflow.end_run({"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[how])


class _Wandb:
    """As WANDB_PROJECT, WANDB_MODE and the other variables of wandb say; its own files are in the run's folder."""

    def begin(self, run: Run, *, first_step: int) -> None:
        import wandb

        ids = _read_ids(run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "listing-vision"),
            name=run.name,
            id=ids.get("wandb"),
            resume="allow",
            dir=str(run.folder),
            config=_flatten(run.read_settings()),
        )
        _write_ids(run, {**ids, "wandb": self._run.id})

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def end(self, how: RunEnd) -> None:
        self._run.finish(exit_code=0 if how == "finished" else 1)


_SERVICES: dict[str, type[_Mlflow] | type[_Wandb]] = {"mlflow": _Mlflow, "wandb": _Wandb}


def create_trackers(wanted: Sequence[str | Tracker]) -> list[Tracker]:
    """Create the trackers of services given by name, `mlflow` or `wandb`; others are taken as they are.

    Raises:
        RunError: an unknown name, or its package is not installed.
    """
    return [_create(one) if isinstance(one, str) else one for one in wanted]


def _create(name: str) -> Tracker:
    if name not in _SERVICES:
        raise RunError(f"no tracker {name!r}; use {' or '.join(_SERVICES)}")
    if find_spec(name) is None:
        raise RunError(f"the tracker {name} needs the package {name!r}; install listing-vision[{name}]")
    return _SERVICES[name]()


class Trackers:
    """All trackers of a run, connected while it is open.

    One that fails under way is left out from then on, with a warning: `metrics.jsonl` has its figures too.
    """

    def __init__(self, trackers: Sequence[Tracker], run: Run, *, first_step: int) -> None:
        self._trackers, self._run, self._first_step = list(trackers), run, first_step
        self.interrupted = False
        """Whether the run ends before its last step, to be resumed."""

    def __enter__(self) -> "Trackers":
        """Connect all.

        Raises:
            RunError: one cannot connect; names it.
        """
        for tracker in self._trackers:
            try:
                tracker.begin(self._run, first_step=self._first_step)
            except Exception as error:  # each client raises its own, unrelated hierarchy
                raise RunError(f"{_name(tracker)} does not take this run: {error}") from error
        return self

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for tracker in list(self._trackers):
            try:
                tracker.log(figures, step)
            except Exception as error:  # as above; days of training must not end with a service that is away
                self._trackers.remove(tracker)
                _log.warning("%s gets no more figures of this run: %s", _name(tracker), error)

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        how: RunEnd = "failed" if failure else "interrupted" if self.interrupted else "finished"
        for tracker in self._trackers:
            try:
                tracker.end(how)
            except Exception as error:  # as above
                _log.warning("%s was not told the end of this run: %s", _name(tracker), error)


def _name(tracker: Tracker) -> str:
    return type(tracker).__name__.lstrip("_")


def _read_ids(run: Run) -> dict[str, str]:
    path = run.folder / _IDS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_ids(run: Run, ids: Mapping[str, str]) -> None:
    write_atomically(run.folder / _IDS_FILE, json.dumps(ids) + "\n")


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"recipe.stages.0.photo_px": 160, …}`: one name a value, as tables of runs want it."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, (list, tuple)):
            value = {str(at): one for at, one in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
