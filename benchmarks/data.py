"""Speed of decoding, cropping and loading images: `python -m benchmarks data`.

The images are photographs of 500×375 pixels and about 110 kB, typical of ImageNet, made from the two that are
bundled with scikit-learn. Rates per core are images per second of processor time, which other programs on the
machine hardly affect; rates of the pipeline use wall-clock time.
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
"""Number of interleaved timing rounds per candidate; the fastest round is reported."""


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Return the installed decoders by name of their package."""
    installed: dict[str, Callable[[bytes], Any]] = {
        "pillow": lambda file: np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    }
    with contextlib.suppress(ImportError):
        simplejpeg = importlib.import_module("simplejpeg")
        installed["simplejpeg"] = lambda file: simplejpeg.decode_jpeg(file, "RGB")
    with contextlib.suppress(ImportError):
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        installed["opencv"] = lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    with contextlib.suppress(ImportError):
        imagecodecs = importlib.import_module("imagecodecs")
        installed["imagecodecs"] = imagecodecs.jpeg8_decode
    return installed


def rates(
    candidates: dict[str, Callable[[bytes], Any]], files: Sequence[bytes], repeats: int
) -> dict[str, float]:
    """Return the images per second of processor time of each candidate."""
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
    """Return the time to the first batch (s), images per second after it, and memory per worker (MB)."""
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
    """Return the proportional memory of a process in MB, which splits shared pages; 0 if it is unknown."""
    try:
        rollup = pathlib.Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


def main(argv: Sequence[str]) -> None:
    """Measure, print tables, and optionally write the metrics as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks data", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels (%(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of workers (0 1 2)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch (%(default)s)")
    parser.add_argument("--batches", type=int, default=20, help="timed batches (%(default)s)")
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
    """Return all metrics, JSON-serializable."""
    crop = Transform(TransformConfig(crop="random", flip=True), size, training=True)
    numbers = iter(range(10**9))
    timed = rates(decoders() | {"crop": lambda file: crop(file, (0, next(numbers)))}, files, repeats)
    cropped = timed.pop("crop")
    photograph = np.asarray(Image.open(io.BytesIO(files[0])))
    full = Box(0, 0, *photograph.shape[:2])
    resizers = {
        "pillow": lambda _: Image.fromarray(photograph).resize((size, size), Image.Resampling.BICUBIC),
        "cykooz_resizer": lambda _: resize(photograph, full, size),
    }
    return {
        "decode": timed,
        "resize": rates(resizers, files, repeats),
        "decode_and_crop": cropped,
        "share_of_bare_decoding": cropped / timed["simplejpeg"],
        "pipeline": [pipeline(files, size, count, batch_size, batches) for count in workers],
    }
