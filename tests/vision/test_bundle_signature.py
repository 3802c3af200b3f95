import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.signing import create_key_pair
from vision.attestation import sign_bundle
from vision.bundle import BUNDLE_FILES, load_bundle
from vision.bundle_signature import verify_signature
from vision.errors import BundleError


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return create_key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(bundle, keys, tmp_path_factory):
    folder = shutil.copytree(bundle.folder, tmp_path_factory.mktemp("signed") / "bundle")
    sign_bundle(folder, keys[0])
    return folder


@pytest.fixture
def copied(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "copied")


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_signed_bundle_is_loaded_wherever_it_lies(copied, keys):
    assert load_bundle(copied, public_key=keys[1]).folder == copied


@pytest.mark.parametrize("name", ["manifest.json", *BUNDLE_FILES, "attestation.json"])
def test_one_flipped_bit_is_refused_by_the_name_of_its_file(copied, keys, name):
    flip_bit(copied / name, (copied / name).stat().st_size // 2)
    with pytest.raises(BundleError, match=name):
        load_bundle(copied, public_key=keys[1])


def test_any_flipped_bit_of_the_signature_is_refused(copied, keys):
    path = copied / "model.sig"
    content = path.read_bytes()
    # The last letters of both base64 texts have bits that readers ignore.
    ends = [at - 1 for at in range(len(content)) if content[at : at + 1] == b"="]
    for position in (*range(0, len(content), 37), *ends):
        flip_bit(path, position)
        with pytest.raises(BundleError, match=r"model\.sig"):
            verify_signature(copied, keys[1])
        path.write_bytes(content)
    verify_signature(copied, keys[1])


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"dsseEnvelope": {"payload": "", "signatures": []}}'])
def test_what_is_no_signature_is_refused(copied, keys, content):
    (copied / "model.sig").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.sig does not hold"):
        verify_signature(copied, keys[1])


def test_a_file_that_is_added_or_removed_is_named(copied, keys):
    (copied / ".gitattributes").write_text("")
    with pytest.raises(BundleError, match=r"\.gitattributes"):
        load_bundle(copied, public_key=keys[1])
    (copied / ".gitattributes").unlink()
    (copied / "model_card.md").unlink()
    with pytest.raises(BundleError, match=r"model_card\.md"):
        load_bundle(copied, public_key=keys[1])


def test_a_file_behind_a_symbolic_link_is_named(copied, keys, tmp_path):
    (copied / "model.onnx").rename(tmp_path / "model.onnx")
    (copied / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx.*symlink"):
        load_bundle(copied, public_key=keys[1])


def test_another_key_and_no_signature_are_refused(signed, bundle, tmp_path):
    _, other = create_key_pair(tmp_path)
    with pytest.raises(BundleError, match=r"does not hold with the key .*key\.pub: Key mismatch"):
        load_bundle(signed, public_key=other)
    with pytest.raises(BundleError, match=r"has no model\.sig"):
        load_bundle(bundle.folder, public_key=other)


def test_a_bundle_that_was_changed_and_sealed_again_is_refused(copied, other_bundle, keys):
    for name in ("manifest.json", *BUNDLE_FILES):
        shutil.copy(other_bundle.folder / name, copied / name)
    assert load_bundle(copied).release == other_bundle.release
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        load_bundle(copied, public_key=keys[1])


def test_a_key_that_cannot_be_used_is_named(signed, copied, keys, tmp_path):
    unusable = tmp_path / "rsa.pem"
    unusable.write_bytes(
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for key in (unusable, keys[0]):
        with pytest.raises(BundleError, match=f"{key.name} is no PEM file of a public elliptic-curve key"):
            load_bundle(signed, public_key=key)
    with pytest.raises(BundleError, match=r"key\.pub is no PEM file of a private"):
        sign_bundle(copied, keys[1])
    with pytest.raises(OSError, match="absent"):
        load_bundle(signed, public_key=tmp_path / "absent")


def test_the_signature_is_that_of_the_standard(signed, keys):
    # OpenSSF's own command verifies it.
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signed / "model.sig"), "--public_key", str(keys[1]), "--ignore-paths"]
    done = subprocess.run([*command, str(signed / "model.sig")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
