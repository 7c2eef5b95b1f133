"""User errors end with one clear message and exit code 1, never with a traceback."""

import gzip
import re

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from l2l_jax.audit import __main__ as audit
from l2l_jax.cli import evaluate
from l2l_jax.cli import filter as filtering
from l2l_jax.compare import __main__ as compare
from l2l_jax.data import prepare
from l2l_jax.main import main
from l2l_jax.plan import __main__ as plan
from l2l_jax.weights.__main__ import main as weights

DIGITS = ["--config=digits_mae:encoder", "--config.audit.enabled=False"]
DATA = dict(source="folder", path="photos", forget="bob", retain="rest", validation_fraction=0)
PHOTOS = [*DIGITS, *(f"--config.data.{name}={value}" for name, value in DATA.items())]
PHOTOS += ["--config.model.pretrained=", "--config.unlearn.retain_budget=0"]
NPZ = ["--config.data.source=npz"]
FIT = [*DIGITS, "--output=filter.safetensors", "--config.evaluate.features=none"]
TABLE = [*PHOTOS, "--config.data.source=csv"]
FRONT = ["--front", "--budgets=1.1"]

FLAGS = [
    (["--confg=digits_mae"], "Unknown command line flag 'confg'"),
    (["--config=digits_mea"], "no such config. Did you mean digits_mae?"),
    (["--config=nothing_like_it"], "By name: .*digits_mae"),
    (["--config=configs/digits_mea.py"], "no such file. .*The package has --config=digits_mae"),
    (["--config=elsewhere/digits_mae.py"], "The package has --config=digits_mae"),
    (["--config=photos"], "a folder; name a file in it"),
    (["--config=text.txt"], "text.txt is not a config: it should be a Python file"),
    (["--config=broken.py"], r"broken.py, line 3: NameError: name 'x' is not defined"),
    (["--config=syntax.py"], r"syntax.py, line 2: "),
    (["--config=number.py"], "config must be a section with fields, not 3"),
    (["--config=empty.py"], "does not define get_config"),
    (["--config=binary.py"], "binary.py"),
    (["--config=digits_mae:decoder"], "has the variant encoder, but none called 'decoder'"),
    (["--config=plain.py:large"], "has no variants: leave out :large"),
    ([], "holds no earlier run: name a config with --config"),
    ([*DIGITS, "run"], "Unexpected argument 'run'"),
    ([*DIGITS, "--compile_cache=maybe"], "compile_cache"),
    ([*DIGITS, "--config.unlearn.alpha.x=1"], "config.unlearn.alpha is a field, not a section"),
    ([*DIGITS, "--config.unlearn.undo.distil=1"], r"Did you mean config.unlearn.undo.distill\?"),
    ([*DIGITS, "--config.unlearn.undo.distill=2"], "undo.distill is '2', but should be less than"),
    ([*DIGITS, "--config.unlearn.alpha="], "config.unlearn.alpha is '', but should be a valid number"),
    ([*DIGITS, "--config.unlearn.steps=1e3"], "config.unlearn.steps is '1e3'"),
    ([*DIGITS, "--config.unlearn.learning_rate=nan"], "learning_rate must be finite"),
    ([*DIGITS, "--config.audit.enabled=perhaps"], "config.audit.enabled is 'perhaps'"),
    ([*DIGITS, "--config.plugins=no_such_module"], "config.plugins names 'no_such_module'"),
    ([*DIGITS, "--config.data.crop_scale=(1,"], "config.data.crop_scale"),
    ([*DIGITS, "--workdir"], "workdir"),
    ([*DIGITS, "--config.unlearn.alpha"], "config.unlearn.alpha"),
    ([*DIGITS, "--config.=1"], "config"),
    ([*DIGITS, "--config.data.forget=5", "--config.data.forgte=5"], r"Did you mean config.data.forget\?"),
    ([*DIGITS, "--config.unlearn.optimizer=sgd"], "config.unlearn.optimizer is 'sgd'"),
    ([*DIGITS, "--config.model.patch_size=7"], "patch_size"),
    ([*DIGITS, "--config.model.image_size=0"], "config.model.image_size is '0', but should be greater"),
    ([*DIGITS, "--config.model.depth=-1"], "config.model.depth is '-1', but should be greater"),
    ([*DIGITS, "--config.model.pixel_std=(1,0,1)"], "config.model.pixel_std"),
    ([*DIGITS, "--config.model.layer_norm_eps=nan"], "config.model.layer_norm_eps is 'nan'"),
    (["--config=digits_vqgan", "--config.model.groups=0"], "config.model.groups is '0'"),
    (["--config=digits_vqgan", "--config.model.decoding_steps=0"], "config.model.decoding_steps is '0'"),
    (["--config=digits_diffusion", "--config.model.channel_mults="], "config.model.channel_mults"),
    (["--config=digits_diffusion", "--config.model.norm_groups=0"], "config.model.norm_groups is '0'"),
    ([*DIGITS, "--num_processes=two"], "num_processes"),
    ([*DIGITS, "--process_id=3"], "process_id|num_processes|coordinator"),
    ([*DIGITS, "--start_timeout=0"], "start_timeout"),
    ([*DIGITS, "--config.unlearn.ntk.damping=0"], "config.unlearn.ntk.damping is '0', but should be greater"),
    ([*DIGITS, "--config.filter.direction=svn"], "config.filter.direction is 'svn'.*'mean' or 'svm'"),
    ([*DIGITS, "--config.data.prototypes=p.npz"], "set retain_images=generated"),
]

WITH_DORA = ("[dora]", "bob,dora", "('bob', 'dora')", "[[dora]]")
NOT_BOB = ("007", "1e0", "None", "bob ", "-1", "+1", "0x1", "１", "(bob)", "bob;eve", "bob/", "*", "3")

CLASSES = [
    ([*PHOTOS, "--config.data.forget=Bob"], "names the class 'Bob'.*nearest: bob"),
    ([*PHOTOS, "--config.data.forget=BOB"], "names the class 'BOB'.*nearest: bob"),
    *(
        ([*PHOTOS, f"--config.data.forget={name}"], f"names the class '{re.escape(name)}'")
        for name in NOT_BOB
    ),
    *(([*PHOTOS, f"--config.data.forget={names}"], "names the class 'dora'") for names in WITH_DORA),
    ([*PHOTOS, "--config.data.forget=[rest]"], "name the classes to forget"),
    ([*PHOTOS, "--config.data.forget=a\x1b[2J\rb"], r"names the class 'a\\x1b\[2J\\rb'"),
    ([*PHOTOS, "--config.data.forget="], "config.data.forget"),
    ([*PHOTOS, "--config.data.forget=rest"], "name the classes to forget"),
    ([*PHOTOS, "--config.data.retain=bob"], "Classes both in config.data.retain and in config.data"),
    ([*PHOTOS, "--config.data.forget=@none.txt"], "the list of classes none.txt cannot be read"),
    ([*PHOTOS, "--config.data.forget=alice,bob,carol"], "config.data.retain"),
    ([*PHOTOS, "--config.data.train_per_class=500"], "train_per_class is 500, but the class"),
    ([*PHOTOS, "--config.data.proxy=dora"], "names the class 'dora'"),
]

PATHS = [
    ([*PHOTOS, "--config.data.path=nowhere"], "config.data.path=nowhere does not exist"),
    ([*PHOTOS, "--config.data.path="], "config.data.path"),
    ([*PHOTOS, "--config.data.path=text.txt"], "is a file; the source 'folder' needs a folder"),
    ([*PHOTOS, "--config.data.path=empty"], "No images"),
    ([*PHOTOS, "--config.data.path=https://a.b/photos"], "https:// is not read"),
    ([*PHOTOS, "--config.data.path=s3://bucket/photos"], "s3:// is not read"),
    ([*PHOTOS, "--config.data.path=no\x1b[2Jwhere"], r"path=no\\x1b\[2J"),
    ([*TABLE, "--config.data.path=url.csv"], "https://a.b/0.png: images are local files .* is not read"),
    ([*TABLE, "--config.data.path=one_image.csv"], "lists no test image: a class needs two images"),
    ([*TABLE, "--config.data.path=semicolons.csv"], "separated by commas, and is path;label"),
    ([*TABLE, "--config.data.path=photos"], "is a folder; the source 'csv' needs a"),
    ([*TABLE, "--config.data.path=no_label.csv"], "label"),
    ([*TABLE, "--config.data.path=binary.py"], "binary.py"),
    ([*TABLE, "--config.data.path=utf16.csv"], "is not UTF-8: save the table"),
    ([*PHOTOS, "--config.data.source=imagnet"], "imagnet"),
    ([*PHOTOS, "--config.data.source=idx", "--config.data.path=bomb"], "has more bytes after its header"),
    ([*PHOTOS, *NPZ, "--config.data.path=text.txt"], "text.txt cannot be read .*expected a .npz file"),
    ([*PHOTOS, *NPZ, "--config.data.path=words.npz"], "test is <U5; expected true for test images"),
    ([*DIGITS, "--workdir=text.txt"], "--workdir=text.txt is a file; name a folder"),
    ([*DIGITS, "--workdir=gs://bucket/run"], "--workdir=gs://bucket/run is not a local folder"),
    ([*DIGITS, "--workdir=/proc/run"], "--workdir=/proc/run cannot be created or written"),
    ([*DIGITS, "--workdir=damaged"], "run.json is damaged"),
    (["--workdir=damaged"], "run.json is damaged .*name the config with --config"),
]

NAMED = ("nowhere", "text.txt", "binary.py", "truncated.safetensors", "strange.safetensors")
MODELS = dict(zip(NAMED, NAMED, strict=True))
MODELS["digits_mae"] = "a model of digits images, but config.data.source is 'folder'"
MODELS |= {"empty": "is not a saved model: it has no model.json", "broken": "model.json is damaged"}
WEIGHTS = [([*PHOTOS, f"--config.model.pretrained={name}"], message) for name, message in MODELS.items()]


OTHERS = [
    (evaluate.main, ["--images=photos"], "--reference"),
    (evaluate.main, ["--images=", "--reference="], "go together: give both"),
    (evaluate.main, ["--images=nowhere", "--reference=photos"], "nowhere"),
    (evaluate.main, ["--images=empty", "--reference=photos"], "empty"),
    (evaluate.main, ["--images=text.txt", "--reference=photos"], "text.txt"),
    (evaluate.main, [*DIGITS, "--tasks=center_8"], "there is no task 'center_8'"),
    (evaluate.main, [*DIGITS, "--unlearned=nowhere"], "nowhere"),
    (evaluate.main, [], "--config"),
    (audit.main, [*DIGITS], "There is no unlearned model to audit"),
    (audit.main, [*DIGITS, "--unlearned=broken"], "model.json is damaged"),
    (audit.main, [*DIGITS, "--require=gone"], "require"),
    (compare.main, [*DIGITS, "--alphas=much"], "--alphas=much"),
    (compare.main, [*DIGITS, "--proxy=11"], "11"),
    (compare.main, [*DIGITS, "--front"], "The grid is empty"),
    (compare.main, [*DIGITS, "--front", "--methods=", "--budgets=1.1"], "--methods= names no method; known:"),
    (compare.main, [*DIGITS, *FRONT, "--config.unlearn.adapter=lora"], "The method undo cannot be run: .*"),
    (compare.main, [*DIGITS, "--front", "--budgets=0.9"], "budgets must be finite and at least 1"),
    (compare.main, [*DIGITS, *FRONT, "--seeds=a"], "seeds must be whole numbers"),
    (compare.main, [*DIGITS, "--methods=undo"], "--methods requires --front"),
    (compare.main, [*DIGITS, *FRONT, "--proxy=5"], "--proxy cannot be combined with --front"),
    (compare.main, [*DIGITS, "--sequence=5,6", "--alphas=1"], "--alphas cannot be combined with --sequence"),
    (compare.main, [*DIGITS, "--sequence=5,6", "--seeds=1"], "--seeds requires --front"),
    (compare.main, [*DIGITS, "--sequence=5,True"], "names the class 'True'"),
    (compare.main, [*DIGITS, "--sequence=5"], "name at least two different classes"),
    (compare.main, [*DIGITS, "--sequence=5,11"], "11"),
    (filtering.main, [], "Expected `l2l-jax filter fit"),
    (filtering.main, ["fit", *DIGITS], "needs --output"),
    (filtering.main, ["fit", *FIT, "--config.filter.undesired=empty"], "undesired=empty holds no image"),
    (filtering.main, ["fit", *FIT, "--config.filter.acceptable=tiny"], "8×8 pixels; expected at least 16×16"),
    (filtering.main, ["fit", *FIT, "--config.filter.features=clip"], "config.filter.features is 'clip'"),
    (filtering.main, ["fit", *FIT, "--unlearned=nowhere"], "There is no model to filter: nowhere"),
    (filtering.main, ["apply", *FIT, "--filter=text.txt", "--input=photos"], "text.txt is not a filter"),
    (filtering.main, ["apply", *FIT, "--filter=no.f", "--input=photos"], "no.f does not exist; name a"),
    (plan.main, [*DIGITS], "--topology is required"),
    (plan.main, [*DIGITS, "--topology=v99:2x2"], "v99"),
    (plan.main, [*DIGITS, "--topology=h100:8", "--programs=all"], "--programs: 'all'"),
    (plan.main, [*DIGITS, "--topology=h100:8", "--stage=pretrain"], "--stage=pretrain"),
    (plan.main, [*DIGITS, "--topology=h100"], "h100"),
    (prepare.main, ["--dataset=coco"], "arguments are required: dataset"),
    (weights, [], "required: COMMAND"),
    (weights, ["import"], "FILE"),
    (weights, ["import", "x.pth", "--set", "num_heads"], "not FIELD=VALUE"),
    (weights, ["inspect", "missing.safetensors"], "does not exist"),
    (weights, ["export", "missing"], "--output"),
    (weights, ["export", "missing", "--output", "x.safetensors"], "not a saved model"),
    (weights, ["export", "missing", "--output", "x.txt"], "must end in"),
    (weights, ["export", "missing", "--output", "x.safetensors", "--dtype", "int8"], "int8"),
    (weights, ["convert", "text.txt"], "invalid choice: 'convert'"),
    (weights, ["inspect", "/dev/null"], "/dev/null is not a file"),
    (weights, ["import", "strange.safetensors"], "strange.safetensors"),
    (weights, ["export", "broken", "--output=out.safetensors"], "model.json is damaged"),
    (weights, ["fetch", "incepton"], "incepton"),
    (weights, ["fetch", "inception", "--folder=text.txt/below"], "cannot be made .*name another folder"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    for number, name in enumerate(("alice", "bob", "carol")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.full((20, 24, 3), 40 * index + number, np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
    (folder / "empty").mkdir()
    (folder / "tiny").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "tiny" / "image.png")
    files = {
        "text.txt": "not python, not weights\n",
        "empty.py": "x = 1\n",
        "broken.py": "\ndef get_config():\n    return {'seed': x}\n",
        "syntax.py": "\ndef get_config(:\n",
        "number.py": "def get_config():\n    return 3\n",
        "plain.py": "def get_config():\n    return {}\n",
        "no_label.csv": "path,kind\nphotos/bob/0.png,bob\n",
        "url.csv": "path,label\nhttps://a.b/0.png,bob\nhttps://a.b/1.png,bob\n",
        "one_image.csv": "path,label\nphotos/bob/0.png,bob\n",
        "semicolons.csv": "path;label\nphotos/bob/0.png;bob\n",
        "broken/model.json": "{",
        "damaged/run.json": '{"pretrain"',
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, "utf-8")
    (folder / "binary.py").write_bytes(bytes(range(256)))
    (folder / "utf16.csv").write_text("path,label\nphotos/bob/0.png,bob\n", "utf-16")
    (folder / "bomb").mkdir()
    (folder / "bomb" / "train-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801 00000001 00"))
    unpacked = bytes.fromhex("00000803 00000001 00000001 00000001") + bytes(10**6)
    (folder / "bomb" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(unpacked))
    arrays = {"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.arange(4) % 2}
    np.savez(folder / "words.npz", test=np.array(["True", "False"] * 2), **arrays)
    safetensors.numpy.save_file({"made.up": np.zeros((2, 3), np.float32)}, folder / "strange.safetensors")
    data = (folder / "strange.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(data[:-5])
    return folder


def check_message(code, output, errors, message):
    last = errors.strip().splitlines()[-1]
    assert code == 1 and output == "" and "Traceback" not in errors
    assert last.startswith("Error: ") and len(last) < 600
    assert re.search(message, last), last


@pytest.mark.parametrize(("arguments", "message"), [*FLAGS, *CLASSES, *PATHS, *WEIGHTS])
def test_user_errors_print_one_message(arguments, message, place, tmp_path, run_here, monkeypatch):
    monkeypatch.chdir(place)
    named = any("--workdir" in argument for argument in arguments)
    workdir = [] if named else [f"--workdir={tmp_path / 'run'}"]
    check_message(*run_here(main, *arguments, *workdir), message)


@pytest.mark.parametrize(("program", "arguments", "message"), OTHERS)
def test_user_errors_with_other_commands(
    program, arguments, message, place, tmp_path, run_here, monkeypatch, capsys
):
    monkeypatch.chdir(place)
    if program in (weights, prepare.main):
        result = program(arguments), *capsys.readouterr()
    else:
        result = run_here(program, *arguments, f"--workdir={tmp_path / 'run'}")
    check_message(*result, message)
