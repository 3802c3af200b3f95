"""Bundles in a model registry: MLflow's, the Hugging Face Hub, or a folder in the Hub's layout.

The Hub's layout is the bundle's files beside a README.md: the model card, with the metadata by which the Hub lists
models.
"""

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vision.attestation import ATTESTATION_FILE
from vision.bundle import BUNDLE_FILES, OPTIONAL_FILES, Bundle, create_bundle, load_bundle, require_new_folder
from vision.bundle_signature import SIGNATURE_FILE, verify_signature
from vision.errors import BundleError

__all__ = ["pull_bundle", "push_bundle"]

_FILES = ("manifest.json", *BUNDLE_FILES, *OPTIONAL_FILES)
_SIGNED_FILES = (ATTESTATION_FILE, SIGNATURE_FILE)
"""What a signed bundle has beside them."""
_MLFLOW, _HUB = "models:/", "hf://"
_CARD_HEADER = """---
library_name: listing-vision
pipeline_tag: image-classification
tags:
- {backbone}
- onnx
---
"""


def push_bundle(folder: Path, target: str) -> str:
    """Copy a bundle, checked before, to a registry.

    Args:
        folder: of the bundle.
        target: `models:/NAME`, a new version of a model of MLflow's registry (MLFLOW_TRACKING_URI); `hf://OWNER/NAME`,
            a repository of the Hugging Face Hub, private if it is new; or a new folder.

    Returns:
        what `pull_bundle` takes it back from.

    Raises:
        BundleError: the bundle is not whole, the registry does not take it, or the folder exists.
    """
    bundle = load_bundle(folder)
    if target.startswith(_MLFLOW):
        with _report_failures(target, "pushed to"):
            return _push_to_mlflow(bundle, target.removeprefix(_MLFLOW))
    if target.startswith(_HUB):
        with _report_failures(target, "pushed to"), tempfile.TemporaryDirectory() as temporary:
            _write_layout(bundle, Path(temporary))
            return _push_to_hub(bundle, Path(temporary), target.removeprefix(_HUB))
    require_new_folder(Path(target))
    Path(target).mkdir(parents=True)
    _write_layout(bundle, Path(target))
    return target


def pull_bundle(source: str, output: Path, *, public_key: Path | None = None) -> Bundle:
    """Copy a bundle from a registry to a new folder, and check every file of it.

    Args:
        source: `models:/NAME/VERSION` or `models:/NAME@ALIAS` of MLflow's registry; `hf://OWNER/NAME`, with
            `@REVISION` where it is not the newest; or a folder.
        output: must not exist.
        public_key: PEM file of the key that must have signed it.

    Raises:
        BundleError: it cannot be had, is not whole, or is not signed with the key; `output` is not made then.
        OSError: the key cannot be read.
    """
    require_new_folder(output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(source)
        if source.startswith(_MLFLOW):
            with _report_failures(source, "pulled from"):
                mlflow = _import("mlflow", extra="mlflow")
                folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=temporary))
        elif source.startswith(_HUB):
            repository, _, revision = source.removeprefix(_HUB).partition("@")
            with _report_failures(source, "pulled from"):
                _import("huggingface_hub", extra="hub").snapshot_download(
                    repository,
                    revision=revision or None,
                    local_dir=temporary,
                    allow_patterns=[*_FILES, *_SIGNED_FILES],
                )
            folder = Path(temporary)
        with create_bundle(output) as building:
            _copy_files(folder, building)
            if public_key:
                verify_signature(building, public_key)
    return load_bundle(output)


def _push_to_mlflow(bundle: Bundle, name: str) -> str:
    mlflow = _import("mlflow", extra="mlflow")
    client = mlflow.MlflowClient()
    with (
        tempfile.TemporaryDirectory() as temporary,
        mlflow.start_run(run_name=bundle.info.model_name, nested=mlflow.active_run() is not None) as run,
    ):
        _copy_files(bundle.folder, Path(temporary))
        mlflow.log_artifacts(temporary, "bundle")
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name,
        source=f"{run.info.artifact_uri}/bundle",
        run_id=run.info.run_id,
        tags={"release": bundle.release, "taxonomy_version": bundle.info.taxonomy_version},
    )
    return f"{_MLFLOW}{name}/{version.version}"


def _push_to_hub(bundle: Bundle, folder: Path, repository: str) -> str:
    hub = _import("huggingface_hub", extra="hub").HfApi()
    hub.create_repo(repository, private=True, exist_ok=True)
    commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Release {bundle.release}")
    return f"{_HUB}{repository}@{commit.oid}"


def _write_layout(bundle: Bundle, folder: Path) -> None:
    _copy_files(bundle.folder, folder)
    card = (bundle.folder / "model_card.md").read_text(encoding="utf-8")
    header = _CARD_HEADER.format(backbone=bundle.info.backbone)
    (folder / "README.md").write_text(header + card, encoding="utf-8")


def _copy_files(source: Path, target: Path) -> None:
    for name in (*_FILES, *_SIGNED_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _import(package: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise BundleError(f"this needs the package {package!r}; install listing-vision[{extra}]") from None


@contextmanager
def _report_failures(place: str, what: str) -> Iterator[None]:
    try:
        yield
    except BundleError:
        raise
    except Exception as error:  # each client raises its own, unrelated hierarchy
        raise BundleError(f"the bundle cannot be {what} {place}: {error}") from error
