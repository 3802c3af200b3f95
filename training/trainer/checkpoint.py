"""Checkpoints written atomically: tensors in safetensors, other state in JSON, both with a sha256."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from training.errors import RunError
from vision.runtime.files import compute_sha256, sync_to_disk

__all__ = ["Checkpoint", "find_latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, torch.Tensor]
    """`model.*`, `ema.*`, `optimizer.*`."""
    state: Mapping[str, Any]
    """JSON values: optimizer scalars, best metrics, gradient scaler."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write `folder/step-NNNNNNNN` atomically (temporary name, fsync, rename); all but the newest `keep` are removed.

    Raises:
        RunError: it cannot be written (a full disk); earlier checkpoints are unchanged.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    if final in _list_checkpoints(folder) and _is_valid(final):
        return final
    temporary = folder / f".tmp-{checkpoint.step:08d}"
    try:
        return _save_checkpoint(folder, temporary, checkpoint, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        good = find_latest_checkpoint(folder)
        left = f"the last good one is {good}" if good else "there is no earlier one"
        raise RunError(
            f"the checkpoint of step {checkpoint.step} cannot be written to {folder}: {error}; {left}; make room and "
            "repeat the command to resume from it"
        ) from error


def _save_checkpoint(folder: Path, temporary: Path, checkpoint: Checkpoint, keep: int) -> Path:
    final = folder / f"step-{checkpoint.step:08d}"
    for left_over in folder.glob(".tmp-*"):
        shutil.rmtree(left_over)
    temporary.mkdir(parents=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    safetensors.torch.save_file(tensors, temporary / "tensors.safetensors")
    digest = compute_sha256(temporary / "tensors.safetensors")
    state = {"step": checkpoint.step, "tensors_sha256": digest, "state": checkpoint.state}
    text = json.dumps(state)
    (temporary / "state.json").write_text(text)
    (temporary / "state.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())
    for path in (*temporary.iterdir(), temporary):
        sync_to_disk(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync_to_disk(folder)
    for old in _list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def find_latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint with a correct hash; damaged ones are skipped with a warning."""
    for path in reversed(_list_checkpoints(folder)):
        try:
            _read_state(path)
        except RunError as error:
            _log.warning("%s; trying the one before", error)
        else:
            return path
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        RunError: a file is missing or damaged.
    """
    state = _read_state(path)
    tensors = safetensors.torch.load_file(path / "tensors.safetensors")
    return Checkpoint(step=state["step"], tensors=tensors, state=state["state"])


def _is_valid(path: Path) -> bool:
    try:
        _read_state(path)
    except RunError:
        return False
    return True


def _read_state(path: Path) -> dict[str, Any]:
    try:
        text = (path / "state.json").read_text()
        whole = (path / "state.sha256").read_text() == hashlib.sha256(text.encode()).hexdigest()
        state: dict[str, Any] = json.loads(text)
        whole = whole and state["tensors_sha256"] == compute_sha256(path / "tensors.safetensors")
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"checkpoint {path} is damaged: {error}") from error
    if not whole:
        raise RunError(f"checkpoint {path} is damaged: a sha256 is not the recorded one")
    return state


def _list_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
