"""Batch inference as Ray Data's documentation shows it: read_images, then map_batches with a class, then write_parquet.

    python -m benchmarks.peers.ray_data_script BUNDLE LIST OUTPUT

LIST holds one photo path per line. Pillow scales the photos; the model is the same ONNX file on one actor per core.
Nothing is fused, decided, grouped by listing or resumed.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Classifier:
    def __init__(self, bundle: str) -> None:
        import onnxruntime

        from vision.bundle import load_bundle

        loaded = load_bundle(bundle)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._side_px = loaded.info.preprocessing.input_px
        self._session = onnxruntime.InferenceSession(str(loaded.onnx_path), options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        side = (self._side_px, self._side_px)
        photos = np.stack([np.asarray(Image.fromarray(photo).resize(side)) for photo in batch["image"]])
        logits = self._session.run(["category_logits"], {"photos": photos})[0]
        return {"path": batch["path"], "category": logits.argmax(axis=1), "score": logits.max(axis=1)}


def main() -> None:
    import ray

    bundle, paths, output = sys.argv[1], Path(sys.argv[2]).read_text().split(), sys.argv[3]
    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began_s = time.monotonic()
    (
        ray.data.read_images(paths, include_paths=True, mode="RGB")
        .map_batches(
            Classifier,
            fn_constructor_args=(bundle,),
            batch_size=32,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=cores),
        )
        .write_parquet(output)
    )
    print(json.dumps({"photos_per_s": len(paths) / (time.monotonic() - began_s)}))


if __name__ == "__main__":
    main()
