"""The interface of our model in Triton: its tensors and parameters, and how tensors are read and written.

The engine and the writer of Triton's model repository must agree on these names. The tensors `INPUT_NAME` and
`OUTPUT_NAMES` are those of the exported model.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from vision.decoding.fork_server import parse_photo_error
from vision.engine import INPUT_NAME, OUTPUT_NAMES, Logits
from vision.errors import EngineBroken, PhotoError
from vision.images import EncodedPhoto

__all__ = [
    "BACKEND_PARAMETER",
    "BACKFILL_PRIORITY",
    "ENCODED_BACKEND_PARAMETER",
    "ENCODED_NAME",
    "ERRORS_NAME",
    "GOLDEN_PRIORITY",
    "LIVE_PRIORITY",
    "SIZES_NAME",
    "YIELDS_PARAMETER",
    "InputTensor",
    "encode_files",
    "encode_pixels",
    "parse_logits",
    "parse_photo_errors",
    "serialize_request",
]

ENCODED_NAME, SIZES_NAME, ERRORS_NAME = "encoded", "sizes", "photo_errors"
"""Tensors of a model that decodes: UINT8 [N, longest], INT32 [N, 1], BYTES [N, 1]."""
BACKEND_PARAMETER = "logits_backend"
"""The parameter of the model's configuration that names what computes the logits; certificates depend on it."""
ENCODED_BACKEND_PARAMETER = "encoded_backend"
"""The same for photos that the model decodes, where it decodes them in another way than the gateway."""

GOLDEN_PRIORITY, LIVE_PRIORITY, BACKFILL_PRIORITY = 1, 2, 3
"""Priorities in the model's queue, first things first: health checks, callers, backfills."""
YIELDS_PARAMETER = "yields"
"""Parameter of a request: photos that take long are decoded at low priority, since another caller's take much less."""


_LENGTH_DELIMITED = 2
_RAW_INPUT_TAG = bytes(
    [service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | _LENGTH_DELIMITED]
)


class InputTensor(NamedTuple):
    name: str
    datatype: str
    shape: Sequence[int]
    chunks: Sequence[bytes | memoryview]
    """Its bytes, one part after another."""


def encode_pixels(photos_nhwc: npt.NDArray[np.uint8]) -> list[InputTensor]:
    return [InputTensor(INPUT_NAME, "UINT8", photos_nhwc.shape, [photos_nhwc.tobytes()])]


def encode_files(photos: Sequence[EncodedPhoto]) -> list[InputTensor]:
    """Encoded photos as rows padded to the longest, and the length of each."""
    longest = max(map(len, photos))
    rows = [chunk for photo in photos for chunk in (photo, bytes(longest - len(photo)))]
    sizes = np.array([*map(len, photos)], np.int32)
    return [
        InputTensor(ENCODED_NAME, "UINT8", (len(photos), longest), rows),
        InputTensor(SIZES_NAME, "INT32", (len(photos), 1), [sizes.tobytes()]),
    ]


def serialize_request(request: "service_pb2.ModelInferRequest", inputs: Sequence[InputTensor]) -> bytes:
    """The serialised request with these inputs and their bytes, each copied once: a message object would take two more
    copies, and photos are large.

    Args:
        request: without inputs; they are added to it.
        inputs: of the request.
    """
    for tensor in inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    parts = [request.SerializeToString()]
    for tensor in inputs:
        # Fields of a serialised message may stand in any order, so that more can follow:
        # protobuf.dev/programming-guides/encoding, "Message Structure" and "Length-Delimited Records".
        parts += [_RAW_INPUT_TAG, _encode_varint(sum(map(len, tensor.chunks))), *tensor.chunks]
    return b"".join(parts)


def _encode_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def parse_logits(
    response: "service_pb2.ModelInferResponse",
    num_photos: int,
    usable: Sequence[bool] | None = None,
    *,
    outputs: Sequence[str] = OUTPUT_NAMES,
    address: str,
) -> Logits:
    """The logits of all photos, or of the usable ones.

    Args:
        outputs: those of `OUTPUT_NAMES` that were requested.

    Raises:
        EngineBroken: tensors are missing, or the logits are zero or not finite.
    """
    found: dict[str, npt.NDArray[np.float32]] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        shape = tuple(output.shape)
        if output.datatype == "FP32" and shape[:1] == (num_photos,) and len(raw) == 4 * np.prod(shape):
            found[output.name] = np.frombuffer(raw, np.float32).reshape(shape)
    missing = [name for name in outputs if name not in found]
    if missing:
        raise EngineBroken(f"Triton at {address} returned no {', '.join(missing)} for {num_photos} photos")
    rows = slice(None) if usable is None or all(usable) else np.asarray(usable)
    logits = Logits(*(part[rows] for part in Logits.from_outputs(found)))
    # A model process with the wrong NumPy returns zeros without any error.
    if len(logits.category) and not (np.isfinite(logits.category).all() and logits.category.any()):
        raise EngineBroken(f"Triton at {address} returned category logits that are zero or not finite")
    return logits


def parse_photo_errors(response: "service_pb2.ModelInferResponse", num_photos: int) -> list[PhotoError | None]:
    """What was wrong with each photo: BYTES [N, 1], each element four bytes of length and its text."""
    at = [output.name for output in response.outputs].index(ERRORS_NAME)
    raw = response.raw_output_contents[at]
    errors: list[PhotoError | None] = []
    position = 0
    for _ in range(num_photos):
        (length,) = struct.unpack_from("<I", raw, position)
        text = raw[position + 4 : position + 4 + length]
        errors.append(parse_photo_error(text) if text else None)
        position += 4 + length
    return errors
