import pytest
from tritonclient.grpc import model_config_pb2 as mc

from serving.triton.config import BACKENDS, TENSORRT_CACHE, RepositoryOptions, build_model_config
from vision.runtime.cpus import count_usable_cores


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_the_tensors_and_the_queue_of_our_model(bundle, backend):
    config = build_model_config(bundle, RepositoryOptions(backend=backend))
    assert (config.name, config.backend) == ("listing_vision", backend.removesuffix("-gpu"))
    assert list(config.input[0].dims) == [64, 64, 3]
    assert config.input[0].data_type == mc.TYPE_UINT8
    info = bundle.info
    outputs = config.output[:4]
    assert [list(o.dims) for o in outputs] == [[info.num_categories], [info.num_brands], [info.embedding_size], [1]]
    assert {o.data_type for o in outputs} == {mc.TYPE_FP32}
    # Models of the Python backend can decode: they have the tensors of encoded photos and of photo errors too.
    decodes = backend in ("python", "python-gpu")
    assert [t.name for t in config.input[1:]] == (["encoded", "sizes"] if decodes else [])
    assert [t.name for t in config.output[4:]] == (["photo_errors"] if decodes else [])
    assert [t.allow_ragged_batch for t in config.input] == [False, backend == "python-gpu", False][: len(config.input)]
    queue = config.dynamic_batching.default_queue_policy
    assert queue.max_queue_size > 0
    assert queue.default_timeout_microseconds > 0
    assert queue.timeout_action == mc.ModelQueuePolicy.REJECT
    assert config.version_policy.latest.num_versions == 2


def test_gpu_backends_warm_every_power_of_two_up_to_the_limit(bundle):
    for backend in ("onnxruntime", "tensorrt", "pytorch"):
        config = build_model_config(bundle, RepositoryOptions(backend=backend, max_batch_size=16))
        assert [sample.batch_size for sample in config.model_warmup] == [1, 2, 4, 8, 16]
        assert config.instance_group[0].kind == mc.ModelInstanceGroup.KIND_GPU
    accelerator = build_model_config(
        bundle, RepositoryOptions(backend="onnxruntime")
    ).optimization.execution_accelerators
    tensorrt = accelerator.gpu_execution_accelerator[0]
    assert tensorrt.name == "tensorrt"
    assert tensorrt.parameters["trt_profile_max_shapes"] == "photos:64x64x64x3"
    # The engine of another model has the same name, and would be loaded for this one.
    assert tensorrt.parameters["trt_engine_cache_path"] == f"{TENSORRT_CACHE}/{bundle.info.model_version}"
    assert tensorrt.parameters["trt_timing_cache_path"] == TENSORRT_CACHE


def test_a_cpu_runs_two_instances_per_core_of_one_thread_each():
    cores = count_usable_cores()
    options = RepositoryOptions(backend="python")
    assert options.num_instances == min(16, 2 * cores)
    assert options.num_threads == max(1, cores // options.num_instances)
