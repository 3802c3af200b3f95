import subprocess
import sys

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as mc

from serving.triton.config import BACKENDS, RepositoryOptions, build_model_config
from serving.triton.repository import list_decoding_code, remove_model, write_repository
from vision.errors import BundleError


def create_options(backend, folder, **more):
    """Options with a stand-in for a plan, which only a GPU can build."""
    plan = folder / "made.plan" if backend == "tensorrt" else None
    if plan:
        plan.write_bytes(b"plan")
    return RepositoryOptions(backend=backend, plan=plan, **more)


def test_each_backend_gets_its_files_and_tensor_names(bundle, tmp_path):
    files, names = {}, {}
    for backend in BACKENDS:
        model = write_repository(bundle, tmp_path / backend, create_options(backend, tmp_path, version=3))
        files[backend] = sorted(path.name for path in (model / "3").iterdir())
        config = text_format.Parse((model / "config.pbtxt").read_text(), mc.ModelConfig())
        assert config == build_model_config(bundle, create_options(backend, tmp_path, version=3))
        names[backend] = [config.input[0].name, config.output[0].name]
    assert files == {
        "onnxruntime": ["model.onnx"],
        "tensorrt": ["model.plan"],
        "pytorch": ["model.pt"],
        "python": ["code", "model.onnx", "model.py"],
        "python-gpu": ["code", "model.pt", "model.py"],
    }
    assert all(found == ["photos", "category_logits"] for found in names.values())


@pytest.mark.parametrize("backend", ["python", "python-gpu"])
def test_the_copied_code_is_complete_and_decodes_without_the_project(bundle, tmp_path, backend):
    model = write_repository(bundle, tmp_path / "models", RepositoryOptions(backend=backend))
    code = model / "1" / "code"
    on_gpu = backend == "python-gpu"
    copied = {path.relative_to(code).as_posix() for path in code.rglob("*.py")}
    assert copied == set(list_decoding_code(on_gpu=on_gpu))
    assert ("vision/images/gpu_decoding.py" in copied) == on_gpu
    program = f"""
import sys
sys.path.insert(0, {str(code)!r})
from vision.decoding import fork_client, fork_server
{"from vision.images import gpu_decoding" if on_gpu else ""}
ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "vision"]
assert all(module.__file__.startswith({str(code)!r}) for module in ours), ours
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_plan_is_reported_with_the_command_that_builds_it(bundle, tmp_path):
    with pytest.raises(BundleError, match="needs --plan; build one on the kind of GPU that serves") as caught:
        write_repository(bundle, tmp_path, RepositoryOptions(backend="tensorrt", max_batch_size=16))
    command = str(caught.value).splitlines()[-1].split()
    assert command[0] == "trtexec"
    assert f"--onnx={bundle.onnx_path}" in command
    # The plan computes with as many bits as the bundle was certified with.
    assert {"--stronglyTyped", "--noTF32"} <= set(command)
    assert [word for word in command if "Shapes" in word] == [
        "--minShapes=photos:1x64x64x3",
        "--optShapes=photos:8x64x64x3",
        "--maxShapes=photos:16x64x64x3",
    ]
    with pytest.raises(BundleError, match=r"nowhere.plan is not a file"):
        write_repository(bundle, tmp_path, RepositoryOptions(backend="tensorrt", plan=tmp_path / "nowhere.plan"))
    with pytest.raises(BundleError, match="--plan is for --backend tensorrt, not for pytorch"):
        write_repository(bundle, tmp_path, RepositoryOptions(backend="pytorch", plan=tmp_path / "nowhere.plan"))
    assert list(tmp_path.iterdir()) == []


def test_a_version_number_is_never_reused(bundle, tmp_path):
    write_repository(bundle, tmp_path, RepositoryOptions(backend="python"))
    with pytest.raises(FileExistsError, match="never reused"):
        write_repository(bundle, tmp_path, RepositoryOptions(backend="python"))
    write_repository(bundle, tmp_path, RepositoryOptions(backend="python", version=2))


def test_a_removed_model_may_be_written_again(bundle, tmp_path):
    options = RepositoryOptions(backend="python")
    remove_model(tmp_path, options.model_name)
    model = write_repository(bundle, tmp_path, options)
    (tmp_path / "another").mkdir()
    remove_model(tmp_path, options.model_name)
    assert not model.exists()
    assert (tmp_path / "another").is_dir()
    assert write_repository(bundle, tmp_path, options) == model
