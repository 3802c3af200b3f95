"""Colour profiles (ICC.1:2001-04) of colours that a file states in numbers: code points of video, or a PNG's gamma.

High dynamic range is compressed to that of sRGB: light is relative to reference white, 203 cd/m² (ITU-R BT.2408). Up to
`_KNEE` of it stays as it is; from there to 1000 cd/m² it follows the curve of Reinhard et al. (SIGGRAPH 2002, equation
4), in each colour by itself.
"""

import struct
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["Chromaticities", "build_code_point_profile", "build_gamma_profile"]

Chromaticities = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
"""CIE 1931 x and y of white, red, green and blue."""
_Floats = npt.NDArray[np.float64]

_D65 = (0.3127, 0.3290)
_SRGB: Chromaticities = (_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_UNSPECIFIED = 2
_HLG = 18
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    _UNSPECIFIED: _SRGB,
    5: (_D65, (0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""ITU-T H.273, table 2: BT.709, BT.470 System B, BT.601, BT.2020, DCI-P3 and Display P3."""
_REFERENCE_WHITE, _PEAK_WHITE, _PQ_WHITE = 203, 1000, 10_000
"""In cd/m²."""
_KNEE = 0.8
_CODES = np.arange(256) / 255
_D50 = np.array([0.9642, 1.0, 0.8249])
_MAX_COLORANT = 100.0
"""Far beyond any screen. A profile's numbers end at 32,768."""
_NUM_GRID_POINTS = 33
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@lru_cache
def build_code_point_profile(primaries: int, transfer: int, *, is_grey: bool) -> bytes | None:
    """Return the profile of code points of ITU-T H.273; None if they are not known.

    If one of the two is unspecified, it is that of sRGB.
    """
    if primaries == transfer == _UNSPECIFIED or primaries not in _PRIMARIES or transfer not in _CURVES:
        return None
    if transfer == _HLG and not is_grey:
        return _build_hlg_profile(_PRIMARIES[primaries])
    return _build_profile(_CURVES[transfer], _PRIMARIES[primaries], is_grey=is_grey)


@lru_cache
def build_gamma_profile(gamma: float | None, chromaticities: Chromaticities | None, *, is_grey: bool) -> bytes | None:
    """Return the profile of code values that are light to the power of 1 / `gamma`; None if the colours are impossible.

    Without a gamma the curve is that of sRGB; without chromaticities the colours are.
    """
    light = _decode_srgb(_CODES) if gamma is None else _CODES**gamma
    return _build_profile(light, chromaticities or _SRGB, is_grey=is_grey)


def _decode_srgb(codes: _Floats) -> _Floats:
    """IEC 61966-2-1."""
    light: _Floats = np.where(codes > 0.04045, ((codes + 0.055) / 1.055) ** 2.4, codes / 12.92)
    return light


def _decode_pq(codes: _Floats) -> _Floats:
    """Relative to reference white; SMPTE ST 2084, equation 4.1."""
    root = codes ** (32 / 2523)
    light: _Floats = (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    return light * _PQ_WHITE / _REFERENCE_WHITE


def _decode_hlg(codes: _Floats, weights: _Floats) -> _Floats:
    """Relative to reference white, on a screen of 1000 cd/m²; ITU-R BT.2100-2, table 5.

    Args:
        codes: (..., N).
        weights: (N,) shares of the colours in luminance, which the screen's gamma is applied to.
    """
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    light: _Floats = scene * (scene @ weights)[..., None] ** 0.2 * _PEAK_WHITE / _REFERENCE_WHITE
    return light


def _compress(light: _Floats) -> _Floats:
    above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    peak = (_PEAK_WHITE / _REFERENCE_WHITE - _KNEE) / (1 - _KNEE)
    compressed = _KNEE + (1 - _KNEE) * above * (1 + above / peak**2) / (1 + above)
    return np.minimum(np.where(light > _KNEE, compressed, light), 1)


_CURVES = {
    **dict.fromkeys((1, _UNSPECIFIED, 6, 13, 14, 15), _decode_srgb(_CODES)),
    4: _CODES**2.2,
    5: _CODES**2.8,
    8: _CODES,
    16: _compress(_decode_pq(_CODES)),
    _HLG: _compress(_decode_hlg(_CODES[:, None], np.ones(1)))[:, 0],
}
"""Light of each 8-bit code by ITU-T H.273, table 3: standard video (by the curve of sRGB, as in browsers), gamma 2.2
and 2.8, linear, PQ, HLG."""


def _build_profile(light: _Floats, chromaticities: Chromaticities, *, is_grey: bool) -> bytes | None:
    """Return a profile of 8-bit codes; `light` is that of each, 0…1."""
    curve = b"curv" + struct.pack(">4xI256H", 256, *np.round(light * 65535).astype(int))
    if is_grey:
        return _write_profile(b"GRAY", {b"kTRC": curve})
    colorants = _compute_colorants(chromaticities)
    if colorants is None:
        return None
    columns = {b"rXYZ": colorants[:, 0], b"gXYZ": colorants[:, 1], b"bXYZ": colorants[:, 2]}
    tags = {name: _write_xyz(column) for name, column in columns.items()}
    return _write_profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def _build_hlg_profile(chromaticities: Chromaticities) -> bytes | None:
    """Return a profile with a table of all colours: a curve for each of them does not know their luminance."""
    colorants = _compute_colorants(chromaticities)
    if colorants is None:
        return None
    codes = np.linspace(0, 1, _NUM_GRID_POINTS)
    grid = np.stack(np.meshgrid(codes, codes, codes, indexing="ij"), axis=-1)
    xyz = _compress(_decode_hlg(grid, colorants[1])) @ colorants.T
    table = np.round(np.clip(xyz, 0, 1) * 32768).astype(">u2").tobytes()
    identity = struct.pack(">9i", *np.eye(3, dtype=int).ravel() * 65536)
    line = struct.pack(">2H", 0, 65535) * 3
    head = b"mft2" + struct.pack(">4x3Bx", 3, 3, _NUM_GRID_POINTS) + identity + struct.pack(">2H", 2, 2)
    return _write_profile(b"RGB ", {b"A2B0": head + line + table + line})


def _compute_colorants(chromaticities: Chromaticities) -> _Floats | None:
    """(3, 3): XYZ of red, green and blue in columns, adapted to D50 by the Bradford transform; None if impossible."""
    white, *primaries = [np.array([x, y, 1 - x - y]) for x, y in chromaticities]
    if white[1] <= 0:
        return None
    white = white / white[1]
    try:
        matrix = np.stack(primaries, axis=1)
        matrix = matrix * np.linalg.solve(matrix, white)
    except np.linalg.LinAlgError:
        return None
    cones = _BRADFORD @ white
    if not (cones > 0).all():
        return None
    colorants: _Floats = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / cones) @ _BRADFORD @ matrix
    return colorants if np.abs(colorants).max() < _MAX_COLORANT else None


def _write_xyz(values: _Floats) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *np.round(values * 65536).astype(int))


def _write_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc" + struct.pack(">4xI", 1) + bytes(1 + 78)
    tags = {b"desc": text, b"wtpt": _write_xyz(_D50), b"cprt": b"text" + bytes(5), **tags}
    at, table, bodies = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, at + len(bodies), len(body))
        bodies += body.ljust(-(-len(body) // 4) * 4, b"\0")
    size = at + len(bodies)
    header = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    return (header + _write_xyz(_D50)[8:]).ljust(128, b"\0") + table + bodies
