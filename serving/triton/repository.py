"""A Triton model repository from a bundle, for a chosen backend."""

import shlex
import shutil
from pathlib import Path

from serving.triton.config import RepositoryOptions, build_plan_command, write_config
from vision.bundle import Bundle
from vision.errors import BundleError

__all__ = ["list_decoding_code", "remove_model", "write_repository"]

_ROOT = Path(__file__).resolve().parents[2]
_DECODING_CODE = (
    "vision/__init__.py",
    "vision/decoding/__init__.py",
    "vision/decoding/decoder_group.py",
    "vision/decoding/fork_client.py",
    "vision/decoding/fork_server.py",
    "vision/decoding/time_limits.py",
    "vision/errors.py",
    "vision/runtime/__init__.py",
    "vision/runtime/lifetime.py",
)
"""Files that a model that decodes needs of this project, beside those of `vision/images`."""
_GPU_DECODING_CODE = "vision/images/gpu_decoding.py"


def list_decoding_code(*, on_gpu: bool) -> list[str]:
    """Paths within this project of the code that a model that decodes needs, copied beside it."""
    images = sorted(path.relative_to(_ROOT).as_posix() for path in (_ROOT / "vision/images").glob("*.py"))
    return [*_DECODING_CODE, *(name for name in images if on_gpu or name != _GPU_DECODING_CODE)]


def write_repository(bundle: Bundle, folder: Path, options: RepositoryOptions) -> Path:
    """Write the model's folder, named after it, with its configuration and one version; returns that folder.

    A version directory appears only when it is complete, and is never overwritten.

    Raises:
        FileExistsError: the version exists.
        BundleError: the backend cannot run the bundle's precision, or a plan is missing.
    """
    _validate_plan(bundle, options)
    if options.runs_torchscript and bundle.info.precision == "int8":
        raise BundleError(
            f"bundle {bundle.folder} is in int8, for ONNX Runtime; --backend {options.backend} runs TorchScript: "
            "take the fp32 or fp16 bundle"
        )
    model = folder / options.model_name
    version = model / str(options.version)
    if version.exists():
        raise FileExistsError(f"{version} exists; a version number is never reused, take the next one")
    building = model / f".{options.version}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    if options.runs_torchscript:
        shutil.copy2(bundle.torchscript_path, building / "model.pt")
    elif options.plan:
        shutil.copy2(options.plan, building / "model.plan")
    else:
        shutil.copy2(bundle.onnx_path, building / "model.onnx")
    if options.decodes:
        _copy_code(building, on_gpu=not options.on_cpu)
    building.rename(version)
    write_config(bundle, folder, options)
    return model


def _copy_code(folder: Path, *, on_gpu: bool) -> None:
    source = _ROOT / "serving/triton/backend" / ("gpu_model.py" if on_gpu else "model.py")
    shutil.copyfile(source, folder / "model.py")
    for name in list_decoding_code(on_gpu=on_gpu):
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ROOT / name, folder / "code" / name)


def _validate_plan(bundle: Bundle, options: RepositoryOptions) -> None:
    if options.backend != "tensorrt":
        if options.plan:
            raise BundleError(f"--plan is for --backend tensorrt, not for {options.backend}")
        return
    if bundle.info.precision == "int8":
        raise BundleError(f"bundle {bundle.folder} is in int8, for ONNX Runtime on a CPU; take the fp32 or fp16 bundle")
    if options.plan is None or not options.plan.is_file():
        missing = f"{options.plan} is not a file" if options.plan else "--backend tensorrt needs --plan"
        command = " ".join(map(shlex.quote, build_plan_command(bundle, options)))
        raise BundleError(
            f"{missing}; build one on the kind of GPU that serves, in the TensorRT image of Triton's month:\n"
            f"  {command}"
        )


def remove_model(folder: Path, model_name: str) -> None:
    """Remove a model with all its versions, if it exists."""
    if (folder / model_name).exists():
        shutil.rmtree(folder / model_name)
