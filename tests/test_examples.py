"""The scripts in examples/."""

import dataclasses
import functools
import pathlib
import runpy

import nbclient
import nbformat
import numpy as np
import pytest

from tests.compiling import flags_of_one_device

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


LATER = [pytest.param(name, marks=pytest.mark.examples) for name in ("nnx", "equinox", "shard_map")]


@pytest.mark.parametrize("framework", ["linen", "torch", *LATER])
def test_loss_in_other_frameworks(framework):
    """The model forgets while retaining; at the first step, student and teacher are equal."""
    if framework == "torch":
        pytest.importorskip("torch")
    main = runpy.run_path(str(EXAMPLES / f"loss_{framework}.py"))["main"]
    before, after = main(steps=1), main(steps=100)
    assert before["retain"] == 0 and before["forget"] > 0
    assert after["forget"] < 0.6 * before["forget"] and after["retain"] < 0.05 * after["forget"]


@pytest.mark.examples
def test_forget_person_example(one_device, tmp_path):
    """From a few drawn photos to the report, with a small model and few steps; a sixth of the images are of
    the person."""
    script = runpy.run_path(str(EXAMPLES / "forget_a_person.py"))
    main, configure, draw_faces = (script[name] for name in ("main", "configure", "draw_faces"))

    def smaller(*arguments):
        config = configure(*arguments)
        model = dataclasses.replace(config.model, width=16, depth=1, decoder_width=16, decoder_depth=1)
        return dataclasses.replace(config, model=model)

    functions = {"configure": smaller, "draw_faces": functools.partial(draw_faces, per_person=15)}
    main.__globals__.update(functions)  # functions of the script, which each test reads again
    flags = [f"--workdir={tmp_path}", "--person=carol", "--pretrain_steps=4", "--unlearn_steps=4"]
    report = main(flags)
    assert report["config"]["data"]["forget"] == ["carol"]
    counts = {split: report["test_images"][split]["count"] for split in ("retain", "forget")}
    assert counts["retain"] == 5 * counts["forget"] > 0
    assert np.isfinite([report["unlearned"][split]["psnr"] for split in counts]).all()
    assert (tmp_path / "run" / "report" / "report.html").is_file()


@pytest.mark.examples
def test_notebook_runs(tmp_path):
    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (cell,) = [cell for cell in notebook.cells if "STEPS = 200" in cell.source]
    cell.source = cell.source.replace("STEPS = 200", "STEPS = 4")
    less = (
        "config_dict.data.test_per_class, config_dict.model.scan = 5, True\n"
        "config_dict.unlearn.retain_budget = 0.0\n"
        "config_dict.evaluate.features, config_dict.evaluate.picture_per_class = 'none', 1\nconfig = "
    )
    cell.source = cell.source.replace("config = ", less)
    (tmp_path / "configs").symlink_to(EXAMPLES.parent / "configs")
    environment = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "XLA_FLAGS": flags_of_one_device()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        done = nbclient.execute(notebook, cwd=str(tmp_path), timeout=600, kernel_name="python3")
    assert "unlearned" in done.cells[-3].outputs[-1]["text"]
    assert done.cells[-1].outputs[0]["data"]["image/png"]
