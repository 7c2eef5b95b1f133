"""Fuzzing of files: readers raise only the project's own errors and write nothing elsewhere.

`-m soak` tries each kind for L2L_JAX_FUZZ_SECONDS (60), from the seed L2L_JAX_FUZZ_SEED (0) on, and prints
(`-s`) its seeds; a quick run tries some examples.
"""

import collections
import copy
import functools
import gzip
import io
import json
import lzma
import os
import resource
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from l2l_jax import config_files
from l2l_jax.config import parse_config, upgrade
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.decoding import ImageError, open_image
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.models.adapters import new_adapter
from l2l_jax.report.write import _with_earlier_costs
from l2l_jax.utils import claim
from l2l_jax.weights import adapters
from l2l_jax.weights.loading import load_pretrained, stored_fields
from l2l_jax.weights.reading import read_checkpoint
from l2l_jax.weights.saved_models import fingerprint, save_model
from tests.data.pictures import encoded, gradient
from tests.data.test_decoding import exif, png, with_exif
from tests.models.test_mae import tiny_params
from tests.weights.checkpoints import SMALL

SECONDS = float(os.environ.get("L2L_JAX_FUZZ_SECONDS", "60"))
FIRST_SEED = int(os.environ.get("L2L_JAX_FUZZ_SEED", "0"))
GROWTH = 2**30
"""Maximum growth of the process's memory in bytes while reading files of a few kilobytes."""

CONFIG = parse_config(config_files.read_config("digits_mae:encoder"))
MAE = SMALL["mae"]

IMAGES = [
    *(encoded(gradient(24, 32), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")),
    encoded(Image.fromarray(gradient(24, 32)).convert("CMYK"), "JPEG"),
    encoded(gradient(24, 32), "JPEG", progressive=True),
    png(np.arange(64).reshape(8, 8, 1), 16, 0),
    *(with_exif(kind, exif([(0x112, 3, 1, b"\x06\0")])) for kind in ("JPEG", "PNG")),
]
TABLE = b'path,label,split\nbob/0.jpg,bob,train\n"bob/1.jpg",bob,test\nbob/2.jpg,"b,ob",val\n'
PIXELS = bytes.fromhex("00000803 00000006 00000004 00000004") + bytes(range(96))
LABELS = bytes.fromhex("00000801 00000006") + bytes([0, 1, 2, 0, 1, 2])


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def edits():
    """Strategy for lists of byte edits: kind, position as a fraction of the file, length, new bytes."""
    place, kind = st.floats(0, 1, exclude_max=True), st.sampled_from(("replace", "delete", "repeat", "cut"))
    return st.lists(st.tuples(kind, place, st.integers(1, 16), st.binary(max_size=9)), min_size=1, max_size=6)


def edited(content, changes):
    for kind, share, length, new in changes:
        place = int(share * len(content))
        if kind == "cut" and length == 1:
            content = content[:place]
        elif kind == "replace":
            content = content[:place] + new + content[place + len(new) :]
        elif kind == "delete":
            content = content[:place] + content[place + length :]
        else:
            content = content[:place] + 8 * content[place : place + length] + content[place:]
    return content


@st.composite
def damaged(draw, *seeds):
    return edited(draw(st.sampled_from(seeds)), draw(edits()))


@st.composite
def other_json(draw, value):
    """Strategy for a JSON value with one value replaced or removed."""
    value = copy.deepcopy(value)
    leaf = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=9)
    new = draw(leaf | st.lists(leaf, max_size=3) | st.dictionaries(st.text(max_size=5), leaf, max_size=3))
    place = value
    while isinstance(place, dict | list) and place:
        key = draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else len(place) - 1
        if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
            place = place[key]
        elif draw(st.booleans()):
            place[key] = new
            break
        else:
            del place[key]
            break
    return json.dumps(value).encode()


def check_image(folder, content):
    try:
        opened = open_image(content)
        if opened.height * opened.width < 10**6:
            assert opened.pixels().shape == (opened.height, opened.width, 3)
    except ImageError as error:
        assert str(error)


def source(kind, name):
    """Return a check that opens a file or folder as the training and test images of a source."""

    def check(folder, content):
        (folder / name).write_bytes(content)
        path = folder if kind == "idx" else folder / name
        for split in ("train", "test"):
            opened = open_source(SourceConfig(kind, str(path)), split, 8)
            assert len(opened) and opened[0]["label"] in range(len(opened.class_names))

    return check


def loaded(name, place=""):
    """Return a check that loads a model whose file `name` is damaged, from `place` or from that file."""

    def check(folder, content):
        (folder / name).write_bytes(content)
        path = folder / (place or name)
        if path.suffix == ".safetensors":
            for array in read_checkpoint(path).state_dict.values():
                array.read()
        stored_fields(str(path))
        load_pretrained(path, "mae", MAE.model)

    return check


def check_adapter(folder, content):
    (folder / "adapter.safetensors").write_bytes(content)
    adapters.with_adapter(folder / "adapter.safetensors", tiny_params(), "mae", MAE.model)


def check_record(folder, content):
    (folder / "run.json").write_bytes(content)
    (folder / "lock.json").unlink(missing_ok=True)
    stored = config_files.stored_config(folder)
    if stored is not None:
        parse_config(upgrade(stored))
    Workdir(folder, CONFIG).close()


def check_lock(folder, content):
    (folder / "lock.json").write_bytes(content)
    Workdir(folder, CONFIG).close()


def check_report(folder, content):
    (folder / "metrics.json").write_bytes(content)
    merged = _with_earlier_costs(REPORT, folder / "metrics.json")
    for key in ("durations_seconds", "peak_memory_gib_after"):
        assert all(isinstance(x, float) for x in merged[key].values())
        assert all(merged[key][phase] >= x for phase, x in REPORT[key].items())


RECORD = {
    "ids": {"original": "a", "unlearned": "b"},
    "config": CONFIG.describe(),
    "inputs": {"train": {"images": 3, "digest": "c"}},
}
CARD = {"family": "mae", "model": MAE.model.as_fields(), "parts": ["encoder", "decoder"], "origin": "made up"}
REPORT = {
    "config": {},
    "seed": 0,
    "original_weights": {},
    "peak_memory_gib": 1.0,
    "durations_seconds": {"unlearn": 2.0},
    "peak_memory_gib_after": {"unlearn": 1.0},
}
LOCK = {"token": "a", "process": {"pid": 1, "start": "2", "machine": "m", "host": "h"}, "since": "today"}
HUB = {
    "model_type": "vit_mae",
    "image_size": 16,
    "patch_size": 4,
    "num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "norm_pix_loss": False,
}
WEIGHTS = safetensors.numpy.save({key: np.ascontiguousarray(x) for key, x in MAE.state_dict.items()})
ARRAYS = dict(images=np.zeros((6, 4, 4, 3), np.uint8), labels=np.arange(6) % 3)
TEST = ARRAYS | {"test": np.arange(6) % 2 > 0}


@functools.cache
def adapter_card():
    return {
        "family": "mae",
        "model": {},
        "adapter": "lora",
        "adapter_rank": 2,
        "adapter_layers": "all",
        "method": "encoder",
        "base": fingerprint(tiny_params(), MAE.model.generative_parts),
        "original_weights": {"origin": "made up"},
    }


@functools.cache
def adapter_arrays():
    parts = {"encoder": tiny_params()["encoder"]}
    return jax.device_get(new_adapter(parts, "lora", 2, jax.random.key(0)))


def adapter_file(card=None):
    return adapters.adapter_bytes(adapter_arrays(), json.loads(card) if card else adapter_card())


def torch_file():
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save({"model": {key: torch.tensor(x) for key, x in MAE.state_dict.items()}}, file)
    return file.getvalue()


KINDS = {
    "image": (check_image, lambda: damaged(*IMAGES)),
    "table": (source("csv", "table.csv"), lambda: damaged(TABLE)),
    "idx images": (source("idx", "train-images-idx3-ubyte"), lambda: damaged(PIXELS)),
    "idx labels": (source("idx", "train-labels-idx1-ubyte"), lambda: damaged(LABELS)),
    "idx gzip": (source("idx", "t10k-images-idx3-ubyte.gz"), lambda: damaged(gzip.compress(PIXELS))),
    "idx xz": (source("idx", "t10k-images-idx3-ubyte.xz"), lambda: damaged(lzma.compress(PIXELS))),
    "npz": (source("npz", "a.npz"), lambda: damaged(npz(**ARRAYS), npz(**TEST), npz(labels=np.zeros(6)))),
    "safetensors": (loaded("model.safetensors"), lambda: damaged(WEIGHTS, WEIGHTS[:4000])),
    "torch": (loaded("model.pth"), lambda: damaged(torch_file())),
    "hub config": (loaded("config.json", "."), lambda: other_json(HUB) | damaged(json.dumps(HUB).encode())),
    "model card": (
        loaded("saved/model.json", "saved"),
        lambda: other_json(CARD) | damaged(json.dumps(CARD).encode()),
    ),
    "adapter": (
        check_adapter,
        lambda: damaged(adapter_file(), adapter_file()[:2000]) | other_json(adapter_card()).map(adapter_file),
    ),
    "run record": (check_record, lambda: other_json(RECORD) | damaged(json.dumps(RECORD).encode())),
    "lock": (check_lock, lambda: other_json(LOCK) | damaged(json.dumps(LOCK).encode())),
    "report": (check_report, lambda: other_json(REPORT) | damaged(json.dumps(REPORT).encode())),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files next to those under test; the working directory is a different one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(claim, "STALE_SECONDS", 0.02)  # for locks of other machines
    folder = tmp_path / "folder"
    (folder / "bob").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (4, 4)).save(folder / "bob" / f"{number}.jpg")
    for name, content in (("images-idx3-ubyte", PIXELS), ("labels-idx1-ubyte", LABELS)):
        for split in ("train", "t10k"):
            (folder / f"{split}-{name}").write_bytes(content)
    save_model(folder / "saved", tiny_params(), CARD)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("seconds", [0, pytest.param(SECONDS, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(kind, seconds, folder):
    check, strategy = KINDS[kind]
    if kind.startswith("idx ") and not kind.endswith(("images", "labels")):
        (folder / "t10k-images-idx3-ubyte").unlink()
    top, before = folder.parent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = collections.Counter()

    @settings(
        max_examples=300 if seconds else 4,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy())
    def run(content):
        try:
            check(folder, content)
            outcomes["read"] += 1
        except UserError as error:
            assert str(error)
            outcomes["refused"] += 1

    end, number = time.monotonic() + seconds, FIRST_SEED
    while number == FIRST_SEED or time.monotonic() < end:
        seed(number)(run)()
        number += 1
    if seconds:
        print(f"{kind}: {dict(outcomes)}, seeds {FIRST_SEED} to {number - 1}")
    assert {name.split("/")[0] for name in listing(top)} == {"folder", "elsewhere"}
    assert not listing(top / "elsewhere")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH
