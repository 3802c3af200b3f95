import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.support.helpers import create_trainer
from training.errors import RunError
from training.run import Run
from training.trackers import TensorBoard, Trackers, create_trackers


class Recorder:
    """A tracker of one's own."""

    def __init__(self, *, fails_at=""):
        self.calls, self._fails_at = [], fails_at

    def _call(self, name, *what):
        if name == self._fails_at:
            raise ConnectionError("no route to host")
        self.calls.append((name, *what))

    def begin(self, run, *, first_step):
        self._call("begin", run.name, first_step)

    def log(self, figures, step):
        self._call("log", dict(figures), step)

    def end(self, how):
        self._call("end", how)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "first")
    run.folder.mkdir()
    (run.folder / "run.json").write_text(json.dumps({"recipe": {"batch_size": 8, "stages": [{"photo_px": 32}]}}))
    return run


def follow(trackers, run, *, first_step=0, interrupted=False):
    with Trackers(trackers, run, first_step=first_step) as opened:
        opened.log({"train/loss": 0.5}, first_step + 10)
        opened.interrupted = interrupted


def test_an_interrupted_run_is_taken_up_where_it_was(synthetic_dataset, small_recipe, tmp_path):
    first, second = Recorder(), Recorder()
    trainer = create_trainer(tmp_path / "run", synthetic_dataset, small_recipe, trackers=[first])
    trainer.stop()
    trainer.run()
    create_trainer(tmp_path / "run", synthetic_dataset, small_recipe, trackers=[second]).run()
    assert [first.calls[0], first.calls[-1]] == [("begin", "run", 0), ("end", "interrupted")]
    assert [second.calls[0], second.calls[-1]] == [("begin", "run", 1), ("end", "finished")]
    epochs = [call for call in second.calls if call[0] == "log" and "epoch/loss" in call[1]]
    metrics = Run(tmp_path / "run").metrics()
    assert [(call[1]["epoch/loss"], call[2]) for call in epochs] == [(m["loss"], m["step"]) for m in metrics]
    assert epochs[-1][1]["epoch/val_leaf_top1"] == metrics[-1]["val_leaf_top1"]


def test_a_run_that_breaks_off_has_failed(run):
    recorder = Recorder()
    with pytest.raises(KeyError), Trackers([recorder], run, first_step=0):
        raise KeyError("x")
    assert recorder.calls[-1] == ("end", "failed")


def test_a_service_that_is_away_is_named_before_training_and_ends_no_run_later(run, caplog):
    with pytest.raises(RunError, match="Recorder does not take this run: no route to host"):
        follow([Recorder(fails_at="begin")], run)
    away, other = Recorder(fails_at="log"), Recorder()
    follow([away, other], run)
    assert [name for name, *_ in away.calls] == ["begin"]
    assert [name for name, *_ in other.calls] == ["begin", "log", "end"]
    follow([Recorder(fails_at="end")], run)
    assert caplog.messages == [
        "Recorder gets no more figures of this run: no route to host",
        "Recorder was not told the end of this run: no route to host",
    ]


def test_a_wrong_or_missing_service_is_named(monkeypatch):
    with pytest.raises(RunError, match="no tracker 'comet'; use mlflow or wandb"):
        create_trackers(["comet"])
    monkeypatch.setattr("training.trackers.find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"needs the package 'wandb'; install listing-vision\[wandb\]"):
        create_trackers(["wandb"])
    own = Recorder()
    assert create_trackers([own]) == [own]


def test_tensorboard_writes_into_the_run(run):
    follow([TensorBoard()], run)
    assert list((run.folder / "tensorboard").glob("events.out.*"))


def record_calls(monkeypatch, name, **functions):
    """Replace a package by one whose functions note their arguments and return what is given."""
    calls = []

    def make(function, returned):
        return lambda *args, **kwargs: (calls.append((function, *args, kwargs)), returned)[1]

    module = ModuleType(name)
    for function, returned in functions.items():
        setattr(module, function, make(function, returned))
    module.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_mlflow_gets_params_and_figures_of_one_run(run, monkeypatch):
    started = SimpleNamespace(info=SimpleNamespace(run_id="r-1"))
    calls = record_calls(
        monkeypatch, "mlflow", start_run=started, active_run=None, log_params=None, log_metrics=None, end_run=None
    )
    follow(create_trackers(["mlflow"]), run, interrupted=True)
    follow(create_trackers(["mlflow"]), run, first_step=10)
    assert [call for call in calls if call[0] != "active_run"] == [
        ("start_run", {"run_id": None, "run_name": "first", "nested": False}),
        ("log_params", {"recipe.batch_size": 8, "recipe.stages.0.photo_px": 32}, {}),
        ("log_metrics", {"train/loss": 0.5}, {"step": 10, "run_id": "r-1"}),
        ("end_run", "KILLED", {}),
        ("start_run", {"run_id": "r-1", "run_name": None, "nested": False}),
        ("log_params", {"recipe.batch_size": 8, "recipe.stages.0.photo_px": 32}, {}),
        ("log_metrics", {"train/loss": 0.5}, {"step": 20, "run_id": "r-1"}),
        ("end_run", "FINISHED", {}),
    ]


def test_wandb_gets_the_recipe_and_figures_of_one_run(run, monkeypatch):
    calls = []
    started = SimpleNamespace(
        id="w-1",
        log=lambda figures, step: calls.append(("log", figures, step)),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )
    inits = record_calls(monkeypatch, "wandb", init=started)
    follow(create_trackers(["wandb"]), run, interrupted=True)
    follow(create_trackers(["wandb"]), run, first_step=10)
    assert [call[1]["id"] for call in inits] == [None, "w-1"]
    assert inits[0][1]["config"] == {"recipe.batch_size": 8, "recipe.stages.0.photo_px": 32}
    assert inits[0][1]["name"] == "first"
    assert calls == [("log", {"train/loss": 0.5}, 10), ("finish", 1), ("log", {"train/loss": 0.5}, 20), ("finish", 0)]


@pytest.mark.filterwarnings("default")  # of the services' own packages
class TestInstalled:
    """The same with the packages themselves, where they are installed: they are extras of their own."""

    def test_mlflow(self, run, tmp_path, monkeypatch):
        pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
        client = importlib.import_module("mlflow").MlflowClient
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
        follow(create_trackers(["mlflow"]), run, interrupted=True)
        follow(create_trackers(["mlflow"]), run, first_step=10)
        [found] = client().search_runs([client().get_experiment_by_name("Default").experiment_id])
        assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
        assert found.data.params == {"recipe.batch_size": "8", "recipe.stages.0.photo_px": "32"}
        history = client().get_metric_history(found.info.run_id, "train/loss")
        assert [(metric.step, metric.value) for metric in history] == [(10, 0.5), (20, 0.5)]

    def test_wandb(self, run, monkeypatch):
        pytest.importorskip("wandb", reason="the extra wandb is not installed")
        monkeypatch.setenv("WANDB_MODE", "offline")
        follow(create_trackers(["wandb"]), run)
        [written] = run.folder.glob("wandb/offline-run-*/run-*.wandb")
        assert json.loads((run.folder / "trackers.json").read_text())["wandb"] in written.name
