"""What several test files need; nothing here is a fixture."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from training.run import Run
from training.trainer.hardware import Machine
from training.trainer.training_loop import TrainingLoop
from vision.manifest import Manifest
from vision.taxonomy import Brand, Category, Taxonomy


def list_children(pid: int) -> list[int]:
    """Pids of the processes that one has started, ended ones included until it has waited for them (Linux).

    By everybody's parent: the lists that the kernel keeps by thread lack children while threads come and go.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def create_scene(width: int = 96, height: int = 64) -> Image.Image:
    """A smooth picture whose four corners differ, so that any turn or mirroring shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=-1).astype(np.uint8))


def encode_image(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def create_trainer(folder, synthetic_dataset, recipe, *, teacher=None, trackers=(), **machine) -> TrainingLoop:
    return TrainingLoop(
        recipe,
        manifest_url=str(synthetic_dataset / "manifest.parquet"),
        manifest=Manifest.load(str(synthetic_dataset / "manifest.parquet")),
        taxonomy=Taxonomy.load(synthetic_dataset / "taxonomy.json"),
        run=Run(folder),
        machine=Machine(num_workers=0, **machine),
        teacher=teacher,
        trackers=trackers,
    )


def train_run(folder, synthetic_dataset, recipe, **machine) -> Run:
    create_trainer(folder, synthetic_dataset, recipe, **machine).run()
    return Run(folder)


def create_small_taxonomy() -> Taxonomy:
    """Leaves of unequal depth: Fruit > Apple > (Gala, Fuji), Fruit > Lemon, Tools."""
    tree = [
        ("fruit", None),
        ("apple", "fruit"),
        ("gala", "apple"),
        ("fuji", "apple"),
        ("lemon", "fruit"),
        ("tools", None),
    ]
    return Taxonomy(
        version="small-1",
        categories=tuple(Category(id=i, names={"en": i.title(), "ja": f"{i}-ja"}, parent_id=p) for i, p in tree),
        brands=(Brand(id="acme", names={"en": "Acme"}, aliases=("ACME Corp",)), Brand(id="zeta", names={"en": "Zeta"})),
    )


def list_decoder_pids(decoders) -> list[int]:
    """Return the pids of a pool's decode workers, from what the kernel says of each pidfd."""
    found = []
    for pidfd in decoders.pidfds:
        fields = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        found.append(int(next(line.split()[1] for line in fields if line.startswith("Pid:"))))
    return found


def mean_difference(a, b) -> float:
    """Mean absolute difference of two photos' values, 0 to 255."""
    return float(np.abs(np.asarray(a, int) - np.asarray(b, int)).mean())
