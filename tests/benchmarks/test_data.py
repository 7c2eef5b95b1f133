"""The data benchmark measures what it says; how fast is nobody's business here."""

import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import data
from benchmarks.photographs import photographs


@pytest.fixture(scope="module")
def files():
    return photographs()


def test_the_photographs_are_like_imagenets(files):
    assert len(set(files)) == 4
    for file in files:
        assert Image.open(io.BytesIO(file)).size == (500, 375) and 100_000 < len(file) < 140_000


def test_figures(files):
    report = data.measure(files[:1], size=64, workers=[0, 1], batch_size=4, batches=2, repeats=1)
    assert {"pillow", "simplejpeg"} <= set(report["decode"]) and min(report["decode"].values()) > 0
    share = report["decode_and_crop"] / report["decode"]["simplejpeg"]
    assert report["share_of_bare_decoding"] == pytest.approx(share)
    threads, processes = report["pipeline"]
    assert (threads["workers"], processes["workers"]) == (0, 1)
    assert threads["megabytes_per_worker"] == 0 and 20 < processes["megabytes_per_worker"] < 150
    json.dumps(report)


def test_an_unknown_benchmark_is_a_sentence():
    command = [sys.executable, "-m", "benchmarks", "dat"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: Which benchmark? python -m benchmarks")
