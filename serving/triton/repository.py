"""A Triton model repository from a bundle, for a chosen backend."""

import json
import math
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.api.responses import PHOTO_LIMITS
from serving.decoding.fork_client import MAX_MEMORY_BYTES
from serving.decoding.fork_server import DecodeSettings
from vision.bundle import ONNX_ON_CPU, Bundle
from vision.engine import INPUT_NAME, OUTPUT_NAMES
from vision.errors import BundleError, ListingVisionError
from vision.runtime.cpus import usable_cores

__all__ = [
    "BACKENDS",
    "BACKEND_PARAMETER",
    "ENCODED_BACKEND_PARAMETER",
    "ENCODED_NAME",
    "ERRORS_NAME",
    "MODEL_NAME",
    "SIZES_NAME",
    "Backend",
    "RepositoryOptions",
    "build_model_config",
    "build_plan_command",
    "read_tuning",
    "remove_model",
    "write_config",
    "write_repository",
]

Backend = Literal["onnxruntime", "tensorrt", "pytorch", "python", "python-gpu"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
MODEL_NAME = "listing_vision"
ENCODED_NAME, SIZES_NAME, ERRORS_NAME = "encoded", "sizes", "photo_errors"
"""Tensors of a model that decodes: UINT8 [N, longest], INT32 [N, 1], BYTES [N, 1]."""
BACKEND_PARAMETER = "logits_backend"
"""Of the model's configuration: what computes the logits, in the words that a bundle's promises are tied to."""
ENCODED_BACKEND_PARAMETER = "encoded_backend"
"""The same for photos that the model decodes itself, where it does not decode them as all others do."""

_TENSORRT_CACHE = "/var/cache/listing-vision/tensorrt"
"""Where TensorRT's engines are kept."""
_MAX_INSTANCES = 16
"""Of 150 MB each."""
_ROOT = Path(__file__).resolve().parents[2]
DECODING_CODE = (
    "serving/__init__.py",
    "serving/decoding/__init__.py",
    "serving/decoding/fork_client.py",
    "serving/decoding/fork_server.py",
    "serving/processes/__init__.py",
    "serving/processes/lifetime.py",
    "vision/__init__.py",
    "vision/errors.py",
    "vision/images/__init__.py",
    "vision/images/decoding.py",
)
"""Files that a model that decodes needs of this project."""
DECODING_CODE_ON_GPU = (*DECODING_CODE, "vision/images/gpu_decoding.py")
_LOGITS_BACKENDS: dict[Backend, str] = {
    "onnxruntime": "onnxruntime-tensorrt",
    "tensorrt": "tensorrt",
    "pytorch": "libtorch-cuda",
    "python": ONNX_ON_CPU,
    "python-gpu": "torch-cuda",
}
_ENCODED_BACKENDS: dict[Backend, str] = {"python-gpu": "torch-cuda-nvjpeg"}
_MAX_DECODERS = 8
"""Processes beside a model that decodes on a GPU, for what a GPU cannot decode; few photos are not JPEGs."""


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    backend: Backend
    """`onnxruntime` (TensorRT accelerated), `tensorrt` (a prebuilt plan) and `pytorch` for a GPU; `python` runs ONNX
    Runtime on the CPU and decodes there; `python-gpu` runs TorchScript on a GPU and decodes JPEGs on it."""
    plan: Path | None = None
    """Of `tensorrt`: what `trtexec` built on the kind of GPU that serves, with Triton's own TensorRT."""
    model_name: str = MODEL_NAME
    """Triton's name for it. Versions of one name share their tensors' sizes; other taxonomies are other names."""
    version: int = 1
    """Triton's version directory. Never reuse a number for other weights."""
    max_batch_size: int = 64
    max_queue_delay_us: int | None = None
    """How long a batch may wait for company; None: 2 ms on a GPU; not at all on a CPU, where company gains nothing."""
    preferred_batch_size: int = 1
    """Of a CPU, what a copy of the model computes in one go, and what Triton's batches are cut to.

    On a CPU a batch is no faster for each photo than a photo alone: its activations only leave the cache.
    """
    instances: int | None = None
    """Copies of the model; None: on a CPU two a core up to sixteen, each of one thread, for each also decodes what it
    computes; on a GPU 1, or 2 where the model decodes: while one reads headers the other computes."""
    max_queue_size: int = 256
    """Requests; beyond it Triton answers UNAVAILABLE at once."""
    queue_timeout_us: int = 5_000_000
    """After so long in the queue a request is refused instead of run."""
    isolate: bool = True
    """On a CPU the model decodes too, in processes that a photo may crash; False: in the model's own process."""
    model_environment: Path | None = None
    """The virtual environment of the `python` backend; None: the first python3 on Triton's PATH."""

    @property
    def num_instances(self) -> int:
        if self.instances is not None:
            return self.instances
        if self.backend == "python-gpu":
            return 2
        # Two a core: while one waits for its decoding process the other computes. `serve tune` measures it.
        return min(_MAX_INSTANCES, 2 * usable_cores()) if self.backend == "python" else 1

    @property
    def num_threads(self) -> int:
        """Threads a copy: what the cores leave for each, at least one."""
        return max(1, usable_cores() // self.num_instances)


def read_tuning(path: Path) -> RepositoryOptions:
    """The options that `serve tune` found best.

    Raises:
        ListingVisionError: no such file, or not one of `serve tune`.
    """
    try:
        return RepositoryOptions(**json.loads(path.read_text(encoding="utf-8"))["best"])
    except OSError as error:
        raise ListingVisionError(
            f"{path} cannot be read: {error.strerror}; `listing-vision serve tune` makes one"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ListingVisionError(f"{path} is not what `listing-vision serve tune` writes: {error!r}") from error


def write_repository(bundle: Bundle, folder: Path, options: RepositoryOptions) -> Path:
    """Write `folder/MODEL_NAME` with its config and one version; returns that path.

    A version directory appears only when it is whole, and is never overwritten.

    Raises:
        FileExistsError: the version exists.
        BundleError: the bundle's precision is not for this backend, or a plan is missing.
    """
    _validate_plan(bundle, options)
    if options.backend in ("pytorch", "python-gpu") and bundle.info.precision == "int8":
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
    if options.backend in ("pytorch", "python-gpu"):
        shutil.copy2(bundle.torchscript_path, building / "model.pt")
    elif options.plan:
        shutil.copy2(options.plan, building / "model.plan")
    else:
        shutil.copy2(bundle.onnx_path, building / "model.onnx")
    if options.backend in ("python", "python-gpu"):
        on_gpu = options.backend == "python-gpu"
        source = _ROOT / "serving/triton/backend" / ("gpu_model.py" if on_gpu else "model.py")
        shutil.copyfile(source, building / "model.py")
        for name in DECODING_CODE_ON_GPU if on_gpu else DECODING_CODE:
            (building / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_ROOT / name, building / "code" / name)
    building.rename(version)
    write_config(bundle, folder, options)
    return model


def write_config(bundle: Bundle, folder: Path, options: RepositoryOptions, *, num_instances: int | None = None) -> None:
    """Write the configuration of a model that is there; a server that is told to load it heeds what has changed.

    Args: num_instances: for now; where nothing else changes, those that are there go on and others join them.
    """
    config = build_model_config(bundle, options)
    if num_instances is not None:
        config.instance_group[0].count = num_instances
    (folder / options.model_name / "config.pbtxt").write_text(text_format.MessageToString(config))


def _validate_plan(bundle: Bundle, options: RepositoryOptions) -> None:
    if options.backend != "tensorrt":
        if options.plan:
            raise BundleError(f"--plan is for --backend tensorrt, not for {options.backend}")
        return
    if bundle.info.precision == "int8":
        raise BundleError(f"bundle {bundle.folder} is in int8, for ONNX Runtime on a CPU; take the fp32 or fp16 bundle")
    if options.plan is None or not options.plan.is_file():
        missing = f"{options.plan} is no file" if options.plan else "--backend tensorrt needs --plan"
        command = " ".join(map(shlex.quote, build_plan_command(bundle, options)))
        raise BundleError(
            f"{missing}; build one on the kind of GPU that serves, in TensorRT's image of the month of Triton's:\n"
            f"  {command}"
        )


def build_plan_command(bundle: Bundle, options: RepositoryOptions) -> list[str]:
    """Builds a bundle's `model.plan` for one to `max_batch_size` photos, in the precision that the model itself has."""
    shapes = _build_shape_profile(bundle, options.max_batch_size)
    return [
        "trtexec",
        f"--onnx={bundle.onnx_path}",
        f"--saveEngine={options.plan or 'model.plan'}",
        "--stronglyTyped",
        # What was certified as fp32 is not rounded to TF32's ten bits, which TensorRT else does.
        *(["--noTF32"] if bundle.info.precision == "fp32" else []),
        *(f"--{name}Shapes={shape}" for name, shape in shapes.items()),
    ]


def _build_shape_profile(bundle: Bundle, max_batch_size: int) -> dict[str, str]:
    """TensorRT's least, best and greatest shapes."""
    side = bundle.info.preprocessing.input_px
    sizes = {"min": 1, "opt": max(1, max_batch_size // 2), "max": max_batch_size}
    return {name: f"{INPUT_NAME}:{size}x{side}x{side}x3" for name, size in sizes.items()}


def remove_model(folder: Path, model_name: str) -> None:
    """Remove a model with all its versions; one that is not there is no error."""
    if (folder / model_name).exists():
        shutil.rmtree(folder / model_name)


def build_model_config(bundle: Bundle, options: RepositoryOptions) -> "model_config_pb2.ModelConfig":
    """Triton's configuration as its own protobuf message, so that it cannot name a field Triton does not have."""
    side = bundle.info.preprocessing.input_px
    sizes = (bundle.info.num_categories, bundle.info.num_brands, bundle.info.embedding_size)
    on_cpu = options.backend == "python"
    decodes = options.backend in ("python", "python-gpu")
    # The libtorch backend knows tensors by position only.
    by_position = options.backend == "pytorch"
    config = model_config_pb2.ModelConfig(
        name=options.model_name, backend=options.backend.removesuffix("-gpu"), max_batch_size=options.max_batch_size
    )
    config.input.add(
        name="INPUT__0" if by_position else INPUT_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=[side, side, 3]
    )
    if decodes:
        # One or the other: pixels, or encoded photos and how long each is.
        config.input[0].optional = True
        encoded = config.input.add(name=ENCODED_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=[-1], optional=True)
        # Files of any length are decoded together.
        encoded.allow_ragged_batch = not on_cpu
        config.input.add(name=SIZES_NAME, data_type=model_config_pb2.TYPE_INT32, dims=[1], optional=True)
    for i, (name, size) in enumerate(zip(OUTPUT_NAMES, sizes, strict=True)):
        config.output.add(
            name=f"OUTPUT__{i}" if by_position else name, data_type=model_config_pb2.TYPE_FP32, dims=[size]
        )
    if decodes:
        config.output.add(name=ERRORS_NAME, data_type=model_config_pb2.TYPE_STRING, dims=[1])
    group = model_config_pb2.ModelInstanceGroup
    kind = group.KIND_CPU if on_cpu else group.KIND_GPU
    config.instance_group.add(count=options.num_instances, kind=kind)
    delay_us = options.max_queue_delay_us
    config.dynamic_batching.max_queue_delay_microseconds = (0 if on_cpu else 2000) if delay_us is None else delay_us
    if on_cpu:
        config.dynamic_batching.preferred_batch_size.append(options.preferred_batch_size)
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size = options.max_queue_size
    policy.default_timeout_microseconds = options.queue_timeout_us
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    # Old and new side by side while a version is switched.
    config.version_policy.latest.num_versions = 2
    config.parameters[BACKEND_PARAMETER].string_value = _LOGITS_BACKENDS[options.backend]
    if options.backend in _ENCODED_BACKENDS:
        config.parameters[ENCODED_BACKEND_PARAMETER].string_value = _ENCODED_BACKENDS[options.backend]
    if decodes:
        # It warms up by itself while loading.
        if on_cpu:
            config.parameters["num_threads"].string_value = str(options.num_threads)
            config.parameters["preferred_batch_size"].string_value = str(options.preferred_batch_size)
        else:
            decoders = min(_MAX_DECODERS, usable_cores())
            config.parameters["num_decoders"].string_value = str(decoders)
        decoding = DecodeSettings(
            preprocessing=bundle.info.preprocessing, limits=PHOTO_LIMITS, max_memory_bytes=MAX_MEMORY_BYTES
        )
        config.parameters["decoding"].string_value = decoding.to_json()
        config.parameters["isolate"].string_value = "true" if options.isolate else "false"
        config.parameters["python"].string_value = "python3"
        if options.model_environment:
            config.parameters["EXECUTION_ENV_PATH"].string_value = str(options.model_environment)
            config.parameters["python"].string_value = str(options.model_environment / "bin" / "python")
        return config
    for exponent in range(int(math.log2(options.max_batch_size)) + 1):
        sample = config.model_warmup.add(name=f"batch_{2**exponent}", batch_size=2**exponent)
        warm = sample.inputs[config.input[0].name]
        warm.data_type, warm.random_data = config.input[0].data_type, True
        warm.dims.extend([side, side, 3])
    if options.backend == "onnxruntime":
        _accelerate_with_tensorrt(config, bundle)
    elif options.backend == "pytorch":
        config.parameters["INFERENCE_MODE"].string_value = "true"
        # The profiling executor makes the first calls of each shape slow, after warm-up too (server#3012).
        config.parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value = "true"
    return config


def _accelerate_with_tensorrt(config: "model_config_pb2.ModelConfig", bundle: Bundle) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    shapes = _build_shape_profile(bundle, cast(int, config.max_batch_size))
    parameters = {
        # What the certificate was made for; another precision is another bundle.
        "precision_mode": "FP16" if bundle.info.precision == "fp16" else "FP32",
        "max_workspace_size_bytes": str(2 << 30),
        "trt_engine_cache_enable": "1",
        # Of these weights alone: ONNX Runtime names an engine after file and graph, which the next model has too.
        "trt_engine_cache_path": f"{_TENSORRT_CACHE}/{bundle.info.model_version}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": _TENSORRT_CACHE,
        **{f"trt_profile_{name}_shapes": shape for name, shape in shapes.items()},
    }
    for key, value in parameters.items():
        accelerator.parameters[key] = value
