"""The wheel and the sdist, installed into separate environments."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata

import numpy as np
import pytest
import safetensors.numpy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import l2l_jax
from l2l_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MINE = ("build", "dist", "runs", ".git", ".venv", "*.egg-info", "__pycache__", ".*_cache")
"""Files that may exist in a checkout but are not part of the project."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """`(wheel, sdist)`; the wheel is built from the unpacked sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*MINE))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Programs of a new virtual environment with only the wheel installed."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    options = ["--no-deps", "--no-index", "--no-compile"]
    install = [sys.executable, "-m", "pip", "--python", folder, "install", *options, distributions[0]]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "bin"


def use_others(installed, site_packages):
    base = str(installed.parent)
    own = sysconfig.get_path("purelib", vars={"base": base, "platbase": base})
    pathlib.Path(own, "others.pth").write_text(f"{site_packages}\n", encoding="utf-8")


def closure(*names):
    """Return the installed packages that `pip install NAMES` would install."""
    packages, queue = set(), list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name not in packages:
            packages.add(name)
            needs = (Requirement(text) for text in metadata.requires(name) or ())
            queue += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return packages


def run(command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOSS_ALONE = """
import sys, l2l_jax
assert "jax" not in sys.modules and "numpy" not in sys.modules
import jax, jax.numpy as jnp
before = set(sys.modules)
from l2l_jax import unlearning_loss
own = {name for name in set(sys.modules) - before if not name.startswith(("jax.", "jaxlib."))}
assert all(name.startswith("l2l_jax.") for name in own), own
zeros = jnp.zeros((4, 3))
loss = jax.jit(lambda x: unlearning_loss(x, zeros, x, zeros, alpha=0.5)[0])
print(float(loss(zeros + 2)), jax.grad(loss)(zeros + 2).tolist()[0][0], l2l_jax.__file__)
"""


def test_losses_need_only_jax_and_numpy(installed, tmp_path):
    """Environment of `pip install jax numpy` and `pip install --no-deps -e .`; the loss is (1 + 0.5) · 2²."""
    others = tmp_path / "others"
    others.mkdir()
    for name in closure("jax", "numpy"):
        for file in {pathlib.Path(str(file)).parts[0] for file in metadata.files(name)} - {".."}:
            source = pathlib.Path(str(metadata.distribution(name).locate_file(file)))
            if not (others / file).exists() and source.exists():
                (others / file).symlink_to(source)
    assert not (others / "flax").exists() and not (others / "optax").exists()
    use_others(installed, others)
    value, gradient, place = run([installed / "python", "-c", LOSS_ALONE], tmp_path).split()
    assert float(value) == 6 and float(gradient) == pytest.approx(2 * 1.5 * 2 / 12)
    assert place.startswith(str(installed.parent))


def test_installed_wheel_has_programs_and_data(installed, tmp_path):
    use_others(installed, sysconfig.get_path("purelib"))
    usage = run([installed / "l2l-jax", "--help"], tmp_path)
    assert all(f"{name} " in usage for name in COMMANDS)
    program = (
        "import importlib.metadata, importlib.resources as r, l2l_jax\n"
        "from l2l_jax.data import class_names\n"
        "from l2l_jax import config_files\n"
        "assert config_files.read_config('digits_mae')['model']['family'] == 'mae'\n"
        "from l2l_jax.configs.vqgan import get_config\n"
        "print(l2l_jax.__file__, importlib.metadata.version('l2l_jax'))\n"
        "assert 'html' in r.files('l2l_jax.report').joinpath('report.html.j2').read_text()"
    )
    place, version = run([installed / "python", "-c", program], tmp_path).split()
    assert place.startswith(str(installed.parent)) and version == l2l_jax.__version__
    safetensors.numpy.save_file({"made.up": np.zeros((2, 3), np.float32)}, tmp_path / "x.safetensors")
    assert "x.safetensors" in run([installed / "l2l-jax", "weights", "inspect", "x.safetensors"], tmp_path)


def test_contents_of_distributions(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"l2l_jax", f"l2l_jax-{l2l_jax.__version__}.dist-info"}
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "l2l_jax").rglob("*.*") if p.is_file()}
    notes = {name for name in expected if name.endswith("README.md")}
    assert {name for name in expected - notes if "__pycache__" not in name} <= set(names)
    with tarfile.open(distributions[1]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    others = ("configs/digits_mae.py", "tests/conftest.py", "docs/guides/images.md")
    assert {"README.md", "LICENSE", *others} <= inside


def test_each_dependency_is_documented_once():
    """docs/reference/dependencies.md has a row for each, and no others."""
    rows = re.findall(
        r"^\| `([\w-]+)(?:\[\w+\])?` \|", (ROOT / "docs/reference/dependencies.md").read_text(), re.M
    )
    names = [Requirement(text).name for text in PROJECT["dependencies"]]
    assert sorted(rows) == sorted(names) and len(set(names)) == len(names)


def test_lazy_imports_match_type_checking_imports():
    text = (ROOT / "l2l_jax" / "__init__.py").read_text(encoding="utf-8")
    (block,) = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
    typed = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert typed == set(l2l_jax.__all__)
    for name in typed:
        assert getattr(l2l_jax, name) is not None
    assert (ROOT / "l2l_jax" / "py.typed").exists()
