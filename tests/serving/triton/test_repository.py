import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as mc

from serving.triton.repository import BACKENDS, RepositoryOptions, build_model_config, remove_model, write_repository
from vision.errors import BundleError
from vision.runtime.cpus import usable_cores


def create_options(backend, folder, **more):
    """With what stands for a plan: no GPU built it."""
    plan = folder / "made.plan" if backend == "tensorrt" else None
    if plan:
        plan.write_bytes(b"plan")
    return RepositoryOptions(backend=backend, plan=plan, **more)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_written_is_a_model_configuration_of_triton(bundle, tmp_path, backend):
    model = write_repository(bundle, tmp_path / "models", create_options(backend, tmp_path))
    config = text_format.Parse((model / "config.pbtxt").read_text(), mc.ModelConfig())
    assert (config.name, config.backend) == ("listing_vision", backend.removesuffix("-gpu"))
    assert list(config.input[0].dims) == [64, 64, 3]
    assert config.input[0].data_type == mc.TYPE_UINT8
    info = bundle.info
    outputs = config.output[:3]
    assert [list(o.dims) for o in outputs] == [[info.num_categories], [info.num_brands], [info.embedding_size]]
    assert {o.data_type for o in outputs} == {mc.TYPE_FP32}
    # The Python backend's models can decode: the same tensors, and what was wrong with each photo.
    decodes = backend in ("python", "python-gpu")
    assert [t.name for t in config.input[1:]] == (["encoded", "sizes"] if decodes else [])
    assert [t.name for t in config.output[3:]] == (["photo_errors"] if decodes else [])
    assert [t.allow_ragged_batch for t in config.input] == [False, backend == "python-gpu", False][: len(config.input)]
    queue = config.dynamic_batching.default_queue_policy
    assert queue.max_queue_size > 0
    assert queue.default_timeout_microseconds > 0
    assert queue.timeout_action == mc.ModelQueuePolicy.REJECT
    assert config.version_policy.latest.num_versions == 2


def test_each_backend_gets_its_files_and_tensor_names(bundle, tmp_path):
    files, names = {}, {}
    for backend in BACKENDS:
        model = write_repository(bundle, tmp_path / backend, create_options(backend, tmp_path, version=3))
        files[backend] = sorted(path.name for path in (model / "3").iterdir())
        config = text_format.Parse((model / "config.pbtxt").read_text(), mc.ModelConfig())
        names[backend] = [config.input[0].name, config.output[0].name]
    assert files == {
        "onnxruntime": ["model.onnx"],
        "tensorrt": ["model.plan"],
        "pytorch": ["model.pt"],
        "python": ["code", "model.onnx", "model.py"],
        "python-gpu": ["code", "model.pt", "model.py"],
    }
    assert names["onnxruntime"] == names["tensorrt"] == names["python"] == ["photos", "category_logits"]
    assert names["pytorch"] == ["INPUT__0", "OUTPUT__0"]


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
    # Another model's engine has the same name, and would be taken for this one's.
    assert tensorrt.parameters["trt_engine_cache_path"].endswith(f"/{bundle.info.model_version}")
    assert (
        tensorrt.parameters["trt_timing_cache_path"] == tensorrt.parameters["trt_engine_cache_path"].rpartition("/")[0]
    )


def test_there_are_two_copies_of_one_thread_a_core_and_never_more_threads_than_that():
    cores = usable_cores()
    options = RepositoryOptions(backend="python")
    assert options.num_instances == min(16, 2 * cores)
    assert options.num_threads == max(1, cores // options.num_instances)


def test_a_missing_plan_is_told_with_the_command_that_builds_it(bundle, tmp_path):
    with pytest.raises(BundleError, match="needs --plan; build one on the kind of GPU that serves") as caught:
        write_repository(bundle, tmp_path, RepositoryOptions(backend="tensorrt", max_batch_size=16))
    command = str(caught.value).splitlines()[-1].split()
    assert command[0] == "trtexec"
    assert f"--onnx={bundle.onnx_path}" in command
    # Nothing is computed with fewer bits than the bundle's promises were tested with.
    assert {"--stronglyTyped", "--noTF32"} <= set(command)
    assert [word for word in command if "Shapes" in word] == [
        "--minShapes=photos:1x64x64x3",
        "--optShapes=photos:8x64x64x3",
        "--maxShapes=photos:16x64x64x3",
    ]
    with pytest.raises(BundleError, match=r"nowhere.plan is no file"):
        write_repository(bundle, tmp_path, RepositoryOptions(backend="tensorrt", plan=tmp_path / "nowhere.plan"))
    with pytest.raises(BundleError, match="--plan is for --backend tensorrt, not for pytorch"):
        write_repository(bundle, tmp_path, RepositoryOptions(backend="pytorch", plan=tmp_path / "nowhere.plan"))
    assert list(tmp_path.iterdir()) == []


def test_a_version_number_is_never_reused(bundle, tmp_path):
    write_repository(bundle, tmp_path, RepositoryOptions(backend="python"))
    with pytest.raises(FileExistsError, match="never reused"):
        write_repository(bundle, tmp_path, RepositoryOptions(backend="python"))
    write_repository(bundle, tmp_path, RepositoryOptions(backend="python", version=2))


def test_a_model_that_is_removed_may_be_written_again(bundle, tmp_path):
    options = RepositoryOptions(backend="python")
    remove_model(tmp_path, options.model_name)
    model = write_repository(bundle, tmp_path, options)
    (tmp_path / "another").mkdir()
    remove_model(tmp_path, options.model_name)
    assert not model.exists()
    assert (tmp_path / "another").is_dir()
    assert write_repository(bundle, tmp_path, options) == model
