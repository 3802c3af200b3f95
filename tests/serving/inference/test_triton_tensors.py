import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from serving.inference import triton_tensors
from serving.inference.triton_tensors import (
    encode_files,
    encode_pixels,
    parse_logits,
    parse_photo_errors,
    serialize_request,
)
from vision.engine import OUTPUT_NAMES
from vision.errors import EngineBroken, PhotoDecoderCrashed, PhotoTruncated


def create_response(**tensors):
    response = service_pb2.ModelInferResponse()
    for name, value in tensors.items():
        response.outputs.add(name=name, datatype="FP32", shape=value.shape)
        response.raw_output_contents.append(value.astype(np.float32).tobytes())
    return response


def create_logits(num_photos, **changed):
    sizes = dict(zip(OUTPUT_NAMES, (5, 3, 4, 1), strict=True))
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(num_photos, size)) for name, size in sizes.items()} | changed


def test_pixels_are_sent_as_they_are():
    photos = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    (tensor,) = encode_pixels(photos)
    assert (tensor.name, tensor.datatype, tuple(tensor.shape)) == ("photos", "UINT8", (2, 4, 4, 3))
    np.testing.assert_array_equal(np.frombuffer(b"".join(tensor.chunks), np.uint8).reshape(tensor.shape), photos)


@pytest.mark.parametrize("photos", [[b"abc"], [b"a", b"abcd", b"ab"]])
def test_files_are_rows_as_long_as_the_longest(photos):
    rows, sizes = encode_files(photos)
    assert (rows.name, sizes.name) == (triton_tensors.ENCODED_NAME, triton_tensors.SIZES_NAME)
    assert tuple(sizes.shape) == (len(photos), 1)
    lengths = np.frombuffer(b"".join(sizes.chunks), np.int32)
    matrix = np.frombuffer(b"".join(rows.chunks), np.uint8).reshape(rows.shape)
    assert [row[:length].tobytes() for row, length in zip(matrix, lengths, strict=True)] == photos


@given(st.lists(st.sampled_from([1, 2, 127, 128, 129, 16_383, 16_384, 16_385, 2_097_152]), min_size=1, max_size=4))
def test_a_request_is_serialised_as_protobuf_does(lengths):
    photos = [bytes([i + 1]) * length for i, length in enumerate(lengths)]
    inputs = encode_files(photos)
    request = service_pb2.ModelInferRequest(model_name="model")
    request.parameters["priority"].uint64_param = 3
    expected = service_pb2.ModelInferRequest(
        model_name="model",
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in inputs
        ],
        raw_input_contents=[b"".join(one.chunks) for one in inputs],
    )
    expected.parameters["priority"].uint64_param = 3
    assert service_pb2.ModelInferRequest.FromString(serialize_request(request, inputs)) == expected


def test_logits_are_those_of_the_usable_photos():
    sent = create_logits(3)
    whole = parse_logits(create_response(**sent), 3, address="somewhere")
    some = parse_logits(create_response(**sent), 3, [True, False, True], address="somewhere")
    for name, all_rows, rows in zip(OUTPUT_NAMES, whole, some, strict=True):
        np.testing.assert_allclose(all_rows, sent[name].reshape(all_rows.shape), rtol=1e-6)
        np.testing.assert_array_equal(rows, all_rows[[0, 2]])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_zeros_and_what_is_not_finite_are_broken(value):
    # A model process with the wrong NumPy returns zeros without any error.
    response = create_response(**create_logits(2, category_logits=np.full((2, 5), value)))
    with pytest.raises(EngineBroken, match="Triton at somewhere returned category logits that are zero or not finite"):
        parse_logits(response, 2, address="somewhere")


def test_unusable_photos_may_have_any_logits():
    response = create_response(**create_logits(1, category_logits=np.full((1, 5), np.nan)))
    assert len(parse_logits(response, 1, [False], address="somewhere").category) == 0


def test_missing_and_mismatched_tensors_are_broken():
    sent = create_logits(2)
    del sent["brand_logits"]
    with pytest.raises(EngineBroken, match="Triton at somewhere returned no brand_logits for 2 photos"):
        parse_logits(create_response(**sent), 2, address="somewhere")
    with pytest.raises(EngineBroken, match=r"returned no category_logits, .*, scope_score for 3 photos"):
        parse_logits(create_response(**create_logits(2)), 3, address="somewhere")


def test_photo_errors_are_read_by_their_lengths():
    texts = [b"", b"PhotoTruncated\nit is cut short", "nonsense é".encode()]
    response = create_response(**create_logits(3))
    response.outputs.add(name=triton_tensors.ERRORS_NAME, datatype="BYTES", shape=[3, 1])
    response.raw_output_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
    errors = parse_photo_errors(response, 3)
    assert [type(error) for error in errors] == [type(None), PhotoTruncated, PhotoDecoderCrashed]
    assert str(errors[1]) == "it is cut short"
