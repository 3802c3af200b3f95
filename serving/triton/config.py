"""Triton's configuration of the model, for a chosen backend."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.decoding.prepared import PHOTO_LIMITS
from serving.inference.model_names import MODEL_NAME
from serving.inference.triton_tensors import (
    BACKEND_PARAMETER,
    BACKFILL_PRIORITY,
    ENCODED_BACKEND_PARAMETER,
    ENCODED_NAME,
    ERRORS_NAME,
    LIVE_PRIORITY,
    SIZES_NAME,
)
from vision.bundle import ONNX_ON_CPU, Bundle
from vision.decoding.fork_client import MAX_MEMORY_BYTES
from vision.decoding.fork_server import DecodeSettings
from vision.engine import INPUT_NAME, SCOPE_NAME
from vision.errors import ListingVisionError
from vision.runtime.cpus import count_usable_cores

__all__ = [
    "BACKENDS",
    "TENSORRT_CACHE",
    "Backend",
    "RepositoryOptions",
    "build_model_config",
    "build_plan_command",
    "read_tuning",
    "write_config",
]

Backend = Literal["onnxruntime", "tensorrt", "pytorch", "python", "python-gpu"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
TENSORRT_CACHE = "/var/cache/listing-vision/tensorrt"
"""Where Triton stores the engines that TensorRT builds."""
_MAX_INSTANCES = 16
"""Each takes 150 MB."""
_LOGITS_BACKENDS: dict[Backend, str] = {
    "onnxruntime": "onnxruntime-tensorrt",
    "tensorrt": "tensorrt",
    "pytorch": "libtorch-cuda",
    "python": ONNX_ON_CPU,
    "python-gpu": "torch-cuda",
}
GpuDecoder = Literal["torchvision", "torchcodec"]
GPU_DECODERS: tuple[GpuDecoder, ...] = get_args(GpuDecoder)
_ENCODED_BACKENDS: dict[GpuDecoder, str] = {
    "torchvision": "torch-cuda-nvjpeg",
    "torchcodec": "torch-cuda-torchcodec",
}
"""Both are nvJPEG; what they make of a photo is not promised to be the same."""
_MAX_DECODERS_ON_CPU, _MAX_DECODERS_ON_GPU = 4, 8
"""Decode workers of an instance, started as listings need them: on a CPU there are two instances per core, on a GPU two
in all, whose workers decode the photos that a GPU cannot decode."""


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    backend: Backend
    """`onnxruntime` (TensorRT accelerated), `tensorrt` (a prebuilt plan) and `pytorch` for a GPU; `python` runs ONNX
    Runtime on the CPU and decodes there; `python-gpu` runs TorchScript on a GPU and decodes JPEGs on it."""
    plan: Path | None = None
    """For `tensorrt`: built by `trtexec` on the kind of GPU that serves, with Triton's own TensorRT."""
    model_name: str = MODEL_NAME
    """Triton's name for the model. All versions of a name have the same tensor sizes; another taxonomy needs
    another."""
    version: int = 1
    """Triton's version directory. Never reuse a number for other weights."""
    max_batch_size: int = 64
    max_queue_delay_us: int | None = None
    """How long a batch may wait for more requests; None: 2 ms on a GPU, 0 on a CPU, where a batch is no faster."""
    preferred_batch_size: int = 1
    """On a CPU, the photos that an instance computes at once, and the size of Triton's batches.

    On a CPU a batch takes as long for each photo as a photo alone, or longer: its activations no longer fit the cache.
    """
    instances: int | None = None
    """Instances of the model; None: on a CPU two per core, at most sixteen, of one thread each, since each also decodes
    its photos; on a GPU 1, or 2 where the model decodes: while one reads headers the other computes."""
    max_queue_size: int = 256
    """Requests; when the queue is full Triton answers UNAVAILABLE at once."""
    queue_timeout_us: int = 5_000_000
    """A request that has waited so long is refused."""
    gpu_decoder: GpuDecoder = "torchvision"
    """Library that decodes on the GPU for `python-gpu`; the model does not load where it cannot."""
    isolate: bool = True
    """A model that decodes does so in decode workers, which a photo may crash; False: in the model's own process."""
    model_environment: Path | None = None
    """The virtual environment of the `python` backend; None: the first python3 on Triton's PATH."""

    @property
    def on_cpu(self) -> bool:
        return self.backend == "python"

    @property
    def decodes(self) -> bool:
        """Whether the model takes encoded photos too."""
        return self.backend in ("python", "python-gpu")

    @property
    def runs_torchscript(self) -> bool:
        return self.backend in ("pytorch", "python-gpu")

    @property
    def num_instances(self) -> int:
        if self.instances is not None:
            return self.instances
        if self.backend == "python-gpu":
            return 2
        # Two per core: while one waits for its decode worker the other computes. `tune triton` measures it.
        return min(_MAX_INSTANCES, 2 * count_usable_cores()) if self.on_cpu else 1

    @property
    def num_threads(self) -> int:
        """Threads of each instance: an equal part of the cores, at least one."""
        return max(1, count_usable_cores() // self.num_instances)


def read_tuning(path: Path) -> RepositoryOptions:
    """The options that `tune triton` measured as the best.

    Raises:
        ListingVisionError: the file cannot be read, or `tune triton` has not written it.
    """
    try:
        return RepositoryOptions(**json.loads(path.read_text(encoding="utf-8"))["best"])
    except OSError as error:
        raise ListingVisionError(
            f"{path} cannot be read: {error.strerror}; `listing-vision tune triton` makes one"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ListingVisionError(f"{path} is not what `listing-vision tune triton` writes: {error!r}") from error


def build_model_config(bundle: Bundle, options: RepositoryOptions) -> "model_config_pb2.ModelConfig":
    """Triton's configuration as its own protobuf message, so that it cannot name a field that Triton does not have."""
    config = model_config_pb2.ModelConfig(
        name=options.model_name, backend=options.backend.removesuffix("-gpu"), max_batch_size=options.max_batch_size
    )
    _add_tensors(config, bundle, options)
    _set_scheduling(config, options)
    # The old and the new version side by side while they are switched.
    config.version_policy.latest.num_versions = 2
    _set_parameter(config, BACKEND_PARAMETER, _LOGITS_BACKENDS[options.backend])
    if options.backend == "python-gpu":
        _set_parameter(config, ENCODED_BACKEND_PARAMETER, _ENCODED_BACKENDS[options.gpu_decoder])
        _set_parameter(config, "gpu_decoder", options.gpu_decoder)
    if options.decodes:  # such a model warms up by itself while loading
        _set_decoding_parameters(config, bundle, options)
    else:
        _add_warmup(config)
    if options.backend == "onnxruntime":
        _accelerate_with_tensorrt(config, bundle)
    elif options.backend == "pytorch":
        _set_parameter(config, "INFERENCE_MODE", "true")
        # The profiling executor makes the first calls of each shape slow, after warm-up too (server#3012).
        _set_parameter(config, "DISABLE_OPTIMIZED_EXECUTION", "true")
    return config


def _add_tensors(config: "model_config_pb2.ModelConfig", bundle: Bundle, options: RepositoryOptions) -> None:
    side = bundle.info.preprocessing.input_px
    # The libtorch backend takes names that end in no __INDEX in their order here, which is that of the exported graph.
    config.input.add(name=INPUT_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=[side, side, 3])
    sizes = {
        "category_logits": bundle.info.num_categories,
        "brand_logits": bundle.info.num_brands,
        "embedding": bundle.info.embedding_size,
        SCOPE_NAME: 1,
    }
    for name in bundle.info.outputs:
        output = config.output.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[sizes[name]])
        if name == SCOPE_NAME and not options.decodes:
            # The exported graph returns (N,), for which Triton has no dims; our own models return (N, 1).
            output.reshape.SetInParent()
    if options.decodes:
        # A request has either pixels, or encoded photos and the length of each.
        config.input[0].optional = True
        encoded = config.input.add(name=ENCODED_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=[-1], optional=True)
        # On a GPU files of any length are decoded together.
        encoded.allow_ragged_batch = not options.on_cpu
        config.input.add(name=SIZES_NAME, data_type=model_config_pb2.TYPE_INT32, dims=[1], optional=True)
        config.output.add(name=ERRORS_NAME, data_type=model_config_pb2.TYPE_STRING, dims=[1])


def _set_scheduling(config: "model_config_pb2.ModelConfig", options: RepositoryOptions) -> None:
    group = model_config_pb2.ModelInstanceGroup
    config.instance_group.add(count=options.num_instances, kind=group.KIND_CPU if options.on_cpu else group.KIND_GPU)
    delay_us = options.max_queue_delay_us
    if delay_us is None:
        delay_us = 0 if options.on_cpu else 2000
    config.dynamic_batching.max_queue_delay_microseconds = delay_us
    if options.on_cpu:
        config.dynamic_batching.preferred_batch_size.append(options.preferred_batch_size)
    config.dynamic_batching.priority_levels = BACKFILL_PRIORITY
    config.dynamic_batching.default_priority_level = LIVE_PRIORITY
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size = options.max_queue_size
    policy.default_timeout_microseconds = options.queue_timeout_us
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT


def _set_decoding_parameters(
    config: "model_config_pb2.ModelConfig", bundle: Bundle, options: RepositoryOptions
) -> None:
    if options.on_cpu:
        _set_parameter(config, "num_threads", str(options.num_threads))
        _set_parameter(config, "preferred_batch_size", str(options.preferred_batch_size))
    max_decoders = _MAX_DECODERS_ON_CPU if options.on_cpu else _MAX_DECODERS_ON_GPU
    _set_parameter(config, "num_decoders", str(min(max_decoders, count_usable_cores())))
    decoding = DecodeSettings(
        preprocessing=bundle.info.preprocessing, limits=PHOTO_LIMITS, max_memory_bytes=MAX_MEMORY_BYTES
    )
    _set_parameter(config, "decoding", decoding.to_json())
    _set_parameter(config, "isolate", "true" if options.isolate else "false")
    python = "python3"
    if options.model_environment:
        _set_parameter(config, "EXECUTION_ENV_PATH", str(options.model_environment))
        python = str(options.model_environment / "bin" / "python")
    _set_parameter(config, "python", python)


def _add_warmup(config: "model_config_pb2.ModelConfig") -> None:
    """Have Triton run a batch of every power of two up to the largest before the model is ready."""
    photos = config.input[0]
    for exponent in range(int(math.log2(config.max_batch_size)) + 1):
        sample = config.model_warmup.add(name=f"batch_{2**exponent}", batch_size=2**exponent)
        warm = sample.inputs[photos.name]
        warm.data_type, warm.random_data = photos.data_type, True
        warm.dims.extend(photos.dims)


def _set_parameter(config: "model_config_pb2.ModelConfig", name: str, value: str) -> None:
    config.parameters[name].string_value = value


def _accelerate_with_tensorrt(config: "model_config_pb2.ModelConfig", bundle: Bundle) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    shapes = _build_shape_profile(bundle, cast(int, config.max_batch_size))
    parameters = {
        # The certificate holds for this precision only; another precision is another bundle.
        "precision_mode": "FP16" if bundle.info.precision == "fp16" else "FP32",
        "max_workspace_size_bytes": str(2 << 30),
        "trt_engine_cache_enable": "1",
        # A folder per model: ONNX Runtime names an engine after file and graph, which the next model shares.
        "trt_engine_cache_path": f"{TENSORRT_CACHE}/{bundle.info.model_version}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": TENSORRT_CACHE,
        **{f"trt_profile_{name}_shapes": shape for name, shape in shapes.items()},
    }
    for key, value in parameters.items():
        accelerator.parameters[key] = value


def build_plan_command(bundle: Bundle, options: RepositoryOptions) -> list[str]:
    """The command that builds `model.plan` for one to `max_batch_size` photos, in the precision of the model itself."""
    shapes = _build_shape_profile(bundle, options.max_batch_size)
    return [
        "trtexec",
        f"--onnx={bundle.onnx_path}",
        f"--saveEngine={options.plan or 'model.plan'}",
        "--stronglyTyped",
        # By default TensorRT rounds fp32 to TF32's ten bits, which the model was not certified with.
        *(["--noTF32"] if bundle.info.precision == "fp32" else []),
        *(f"--{name}Shapes={shape}" for name, shape in shapes.items()),
    ]


def _build_shape_profile(bundle: Bundle, max_batch_size: int) -> dict[str, str]:
    """The shapes that TensorRT must take at least, is optimised for, and must take at most."""
    side = bundle.info.preprocessing.input_px
    sizes = {"min": 1, "opt": max(1, max_batch_size // 2), "max": max_batch_size}
    return {name: f"{INPUT_NAME}:{size}x{side}x{side}x3" for name, size in sizes.items()}


def write_config(bundle: Bundle, folder: Path, options: RepositoryOptions, *, num_instances: int | None = None) -> None:
    """Write the configuration of a model in the repository; Triton applies it when it loads the model.

    Args: num_instances: another number than that of the options; where nothing else has changed, Triton keeps the
        running instances and adds or removes the others.
    """
    config = build_model_config(bundle, options)
    if num_instances is not None:
        config.instance_group[0].count = num_instances
    (folder / options.model_name / "config.pbtxt").write_text(text_format.MessageToString(config))
