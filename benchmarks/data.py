"""Speed of decoding, cropping and handing over images: `python -m benchmarks data`.

The images are photographs of 500×375 pixels and some 110 kB, as ImageNet's typically are, made from the two
that scikit-learn carries. Rates per core are images per second of processor time, so that other programs on
the machine hardly matter; rates of the pipeline are by the clock.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tabulate import tabulate

from benchmarks.photographs import SIZE, Photographs, photographs
from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.data.transforms import Box, Transform, TransformConfig, resize

ROUNDS = 5
"""Every candidate is timed so often, interleaved; the fastest round counts."""


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Decoders by the name of their package, as far as they are installed."""
    found: dict[str, Callable[[bytes], Any]] = {
        "pillow": lambda file: np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    }
    with contextlib.suppress(ImportError):
        simplejpeg = importlib.import_module("simplejpeg")
        found["simplejpeg"] = lambda file: simplejpeg.decode_jpeg(file, "RGB")
    with contextlib.suppress(ImportError):
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        found["opencv"] = lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    with contextlib.suppress(ImportError):
        imagecodecs = importlib.import_module("imagecodecs")
        found["imagecodecs"] = imagecodecs.jpeg8_decode
    return found


def rates(
    candidates: dict[str, Callable[[bytes], Any]], files: Sequence[bytes], repeats: int
) -> dict[str, float]:
    """Images per second of processor time of each candidate."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(ROUNDS):
        for name, work in candidates.items():
            start = time.process_time()
            for _ in range(repeats):
                for file in files:
                    work(file)
            best[name] = min(best[name], time.process_time() - start)
    return {name: repeats * len(files) / seconds for name, seconds in best.items()}


def pipeline(
    files: Sequence[bytes], size: int, workers: int, batch_size: int, batches: int
) -> dict[str, float]:
    """Time to the first batch (s), images per second after it, and memory per worker (MB)."""
    transform = Transform(TransformConfig(crop="random", flip=True), size, training=True)
    start = time.perf_counter()
    stream = TrainingBatches(
        {"all": Photographs(files, 10 * batch_size)},
        batch_size,
        value_range=(0, 1),
        seed=0,
        transforms={"all": transform},
        options=LoaderOptions(workers=workers),
    )
    with contextlib.closing(iter(stream)) as iterator:
        next(iterator)
        first = time.perf_counter() - start
        for _ in range(batches):
            next(iterator)
        seconds = time.perf_counter() - start - first
        memory = [_memory(pid) for pid in iterator.worker_ids]
    return {
        "workers": workers,
        "first_batch_seconds": first,
        "images_per_second": batches * batch_size / seconds,
        "megabytes_per_worker": max(memory, default=0.0),
    }


def _memory(process_id: int) -> float:
    """What a process alone takes, in MB: pages that it shares count in parts. 0 where that is unknown."""
    try:
        rollup = pathlib.Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


def main(argv: Sequence[str]) -> None:
    """Measure, print tables, and write the metrics as JSON if that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks data", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels (%(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of workers (0 1 2)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="of the pipeline (%(default)s)")
    parser.add_argument("--batches", type=int, default=20, help="of the pipeline (%(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="passes over the 4 images (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args(argv[1:])
    files = photographs()
    report = measure(files, args.size, args.workers, args.batch_size, args.batches, args.repeats)
    kilobytes = sum(map(len, files)) // len(files) // 1000
    print(f"{len(files)} JPEGs of {SIZE[0]}×{SIZE[1]} pixels, {kilobytes} kB each\n")
    for title in ("decode", "resize"):
        print(tabulate(report[title].items(), headers=[title, "images/s/core"], floatfmt=".0f"), "\n")
    print(
        f"decode + random crop to {args.size}: {report['decode_and_crop']:.0f} images/s/core, "
        f"{report['share_of_bare_decoding']:.0%} of simplejpeg alone\n"
    )
    print(tabulate(report["pipeline"], headers="keys", floatfmt=".2f"))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(
    files: Sequence[bytes], size: int, workers: Sequence[int], batch_size: int, batches: int, repeats: int
) -> dict[str, Any]:
    """All metrics, JSON-able."""
    crop = Transform(TransformConfig(crop="random", flip=True), size, training=True)
    numbers = iter(range(10**9))
    timed = rates(decoders() | {"crop": lambda file: crop(file, (0, next(numbers)))}, files, repeats)
    cropped = timed.pop("crop")
    photograph = np.asarray(Image.open(io.BytesIO(files[0])))
    whole = Box(0, 0, *photograph.shape[:2])
    resizers = {
        "pillow": lambda _: Image.fromarray(photograph).resize((size, size), Image.Resampling.BICUBIC),
        "cykooz_resizer": lambda _: resize(photograph, whole, size),
    }
    return {
        "decode": timed,
        "resize": rates(resizers, files, repeats),
        "decode_and_crop": cropped,
        "share_of_bare_decoding": cropped / timed["simplejpeg"],
        "pipeline": [pipeline(files, size, count, batch_size, batches) for count in workers],
    }
