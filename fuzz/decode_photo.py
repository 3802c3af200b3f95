"""Find bytes that break `prepare_photo`: neither a photo nor a PhotoError, or too much time or memory.

    make fuzz                                          half an hour
    python -m fuzz.decode_photo --minutes 600          a night
    python -m fuzz.decode_photo build/fuzz/findings/*  decode the findings again

Seeds are photos of every accepted format and the hostile photos of the tests (tests/support/hostile_photos.py); inputs
that reach new code stay in the corpus for the next run. atheris measures the coverage of Python code, in vision and in
Pillow; native decoders get the inputs without being measured. Photos are limited to a few megapixels, so that many are
tried and slow or large ones are not merely big.

Each finding is a file, with a text beside it that says what happened and how to reproduce it. Exits 1 if there is one.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_MAX_LEN = 1 << 16
_HANGS_AFTER_S = 20
_FINDINGS_OF_A_KIND = 5
_PULSE = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")
"""A line of libFuzzer: executions, edges, features."""

_WORDS = [
    *b"IHDR PLTE IDAT IEND tRNS cICP iCCP sRGB gAMA cHRM zTXt iTXt eXIf acTL fcTL fdAT".split(),
    *b"JFIF Exif ICC_PROFILE MPF Adobe acsp desc rTRC A2B0 GIF87a GIF89a NETSCAPE2.0".split(),
    *b"RIFF WEBP VP8L VP8X ANIM ANMF ALPH avif heic mif1 grid hvcC av1C auxC mdat".split(),
    *b"ftyp meta iloc iinf infe iprp ipco ipma ispe irot imir clap colr nclx iref dimg".split(),
    *(bytes([0xFF, marker]) for marker in (*range(0xC0, 0xD0), *range(0xD8, 0xE3), 0xEE, 0xFE)),
    *(b"Exif\0\0II*\0", b"Exif\0\0MM\0*", b"\x12\x01\x03\0", b"\x01\x12\0\x03", b"!\xf9\x04", b"VP8 "),
]


@dataclass(frozen=True, kw_only=True)
class _Limits:
    megapixels: float
    seconds: float
    megabytes: int


def main() -> None:
    options = _options()
    limits = _Limits(megapixels=options.megapixels, seconds=options.seconds, megabytes=options.megabytes)
    if options.worker_s:
        _work(options.corpus, limits, options.worker_s)
    elif options.photos:
        sys.exit(_reproduce(options.photos, limits))
    else:
        sys.exit(_supervise(options.corpus, limits, 60 * options.minutes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="decode these files instead of fuzzing")
    parser.add_argument("--minutes", type=float, default=30, help="duration")
    parser.add_argument("--corpus", type=Path, default=_ROOT / "build" / "fuzz", help="folder; findings lie in it too")
    parser.add_argument("--seconds", type=float, default=2, help="a photo that takes more of a processor is a finding")
    parser.add_argument("--megabytes", type=int, default=300, help="a photo that takes more memory is a finding")
    parser.add_argument("--megapixels", type=float, default=2, help="larger photos are refused; the gateway takes 50")
    parser.add_argument("--worker-s", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _supervise(corpus: Path, limits: _Limits, seconds: float) -> int:
    """Run workers until the time is up; a new one starts where a photo ends one."""
    for folder in ("corpus", "findings"):
        (corpus / folder).mkdir(parents=True, exist_ok=True)
    num_seeds = _write_seeds(corpus)
    print(
        f"{num_seeds} seeds and the corpus of earlier runs in {corpus / 'corpus'}; {seconds / 60:g} minutes", flush=True
    )
    known = set((corpus / "findings").iterdir())
    began = reported = time.monotonic()
    finished = edges = features = 0
    while (left := round(began + seconds - time.monotonic())) > 0:
        executions = 0
        for executions, edges, features in _read_progress(corpus, limits, left):
            if time.monotonic() > reported + 60:
                reported = time.monotonic()
                _report_progress(reported - began, finished + executions, edges, features)
        finished += executions
        _describe_crashes(corpus / "findings", limits)
    _report_progress(time.monotonic() - began, finished, edges, features)
    found = sorted(path for path in set((corpus / "findings").iterdir()) - known if path.suffix == ".txt")
    for path in found:
        print(f"\n{path.with_suffix('')}\n{path.read_text()}")
    print(f"{len(found)} findings")
    return 1 if found else 0


def _report_progress(seconds: float, executions: int, edges: int, features: int) -> None:
    minutes = f"{seconds / 60:.1f} min"
    print(f"{minutes}: {executions:,} executions, {edges:,} edges, {features:,} features", flush=True)


def _read_progress(corpus: Path, limits: _Limits, seconds: int) -> Iterator[tuple[int, int, int]]:
    """Run one worker; yield executions, edges and features as it reports them."""
    command = [sys.executable, "-m", "fuzz.decode_photo", "--worker-s", str(seconds), "--corpus", str(corpus)]
    command += ["--seconds", str(limits.seconds), "--megabytes", str(limits.megabytes)]
    command += ["--megapixels", str(limits.megapixels)]
    with (
        (corpus / "worker.log").open("a") as log,
        subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE, text=True, errors="replace") as worker,
    ):
        assert worker.stderr is not None
        for line in worker.stderr:
            log.write(line)
            if pulse := _PULSE.match(line):
                yield int(pulse[1]), int(pulse[2]), int(pulse[3])


def _write_seeds(corpus: Path) -> int:
    from tests.support.helpers import create_scene, encode_image
    from tests.support.hostile_photos import hostile_photos

    seeds = [photo.data for photo in hostile_photos() if not photo.is_slow]
    small = create_scene(24, 16)
    for format_ in ("JPEG", "PNG", "WEBP", "GIF", "AVIF"):
        for mode in ("RGB", "RGBA", "L", "P", "CMYK"):
            try:
                seeds.append(encode_image(small.convert(mode), format_))
            except (OSError, ValueError):  # the format lacks the mode
                continue
    seeds += [encode_image(small, "WEBP", lossless=True), encode_image(small, progressive=True)]
    seeds = [seed for seed in seeds if 0 < len(seed) <= _MAX_LEN]
    for seed in seeds:
        (corpus / "corpus" / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in _WORDS)
    (corpus / "words.dict").write_text("".join(f'"{word}"\n' for word in words))
    return len(seeds)


def _work(corpus: Path, limits: _Limits, seconds: int) -> None:
    """Fuzz until the time is up, or until a photo ends this process."""
    import atheris

    with atheris.instrument_imports(include=["vision", "PIL"]):
        import vision.images  # noqa: F401

    def run(data: bytes) -> None:
        if happened := _find_problem(data, limits):
            _write_finding(corpus / "findings", data, *happened)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        mutated = bytes(atheris.Mutate(data, max_size))
        # One in eight keeps its wrong checksums.
        return _fix_png_checksums(mutated) if seed % 8 else mutated

    settings = {
        "max_total_time": seconds,
        "max_len": _MAX_LEN,
        "timeout": _HANGS_AFTER_S,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{corpus / 'findings'}/",
        "dict": corpus / "words.dict",
    }
    arguments = [f"-{name}={value}" for name, value in settings.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus / "corpus")], run, custom_mutator=mutate)
    atheris.Fuzz()


def _find_problem(data: bytes, limits: _Limits) -> tuple[str, str] | None:
    """Decode the bytes; return a finding's kind and description, or None."""
    from vision.errors import PhotoError
    from vision.images import PhotoLimits, Preprocessing, prepare_photo

    photo_limits = PhotoLimits(max_pixels=int(limits.megapixels * 1e6))
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset the peak of resident memory
    before, began = _peak_mb(), time.process_time()
    try:
        photo = prepare_photo(data, Preprocessing(input_px=32), photo_limits)
        if photo.shape != (32, 32, 3):
            return "wrong", f"a photo of shape {photo.shape}"
    except PhotoError:
        pass
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}-{where.name}", traceback.format_exc()
    seconds, megabytes = time.process_time() - began, _peak_mb() - before
    if seconds > limits.seconds:
        return f"slow-{data[:4].hex()}", f"{seconds:.2f} s of processor time"
    if megabytes > limits.megabytes:
        return f"large-{data[:4].hex()}", f"{megabytes} MB"
    return None


def _peak_mb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) >> 10


def _fix_png_checksums(data: bytes) -> bytes:
    """Return the data with correct checksums, without which decoders reject any changed PNG header."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    summed, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        summed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(summed)


def _write_finding(folder: Path, data: bytes, kind: str, happened: str) -> None:
    if len(list(folder.glob(f"{kind}-*.txt"))) < _FINDINGS_OF_A_KIND:
        path = folder / f"{kind}-{hashlib.sha1(data).hexdigest()[:10]}"
        path.write_bytes(data)
        _describe(path, happened)


def _describe_crashes(folder: Path, limits: _Limits) -> None:
    """Describe the findings that libFuzzer wrote because they ended a worker."""
    kinds = {"crash": "it ended the process", "oom": "over 4 GiB", "timeout": f"over {_HANGS_AFTER_S} s"}
    for path in folder.iterdir():
        kind = path.name.partition("-")[0]
        if kind in kinds and path.suffix != ".txt" and not path.with_suffix(".txt").exists():
            _describe(path, f"{kinds[kind]}; worker.log has the rest")


def _describe(path: Path, happened: str) -> None:
    path.with_suffix(".txt").write_text(f"{happened.rstrip()}\nReproduce: python -m fuzz.decode_photo {path}\n")


def _reproduce(photos: list[Path], limits: _Limits) -> int:
    num_findings = 0
    for path in photos:
        if path.suffix == ".txt":
            continue
        print(f"{path}: ", end="", flush=True)  # the photo may end this process
        happened = _find_problem(path.read_bytes(), limits)
        print(f"{happened[0]}\n{happened[1]}" if happened else "no problem", flush=True)
        num_findings += happened is not None
    return 1 if num_findings else 0


if __name__ == "__main__":
    main()
