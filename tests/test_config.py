"""Validation of configs before any work."""

import json
import operator
import pathlib
import runpy

import pytest

from l2l_jax.config import parse_config, upgrade
from l2l_jax.config_files import override, read_config, split_overrides
from l2l_jax.errors import UserError
from l2l_jax.utils.text import Text

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def raw_config(name="digits_mae"):
    return read_config(name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_documented(path):
    config = parse_config(raw_config(path.stem))
    assert config.describe()["unlearn"]["alpha"] == config.unlearn.alpha
    docstring = runpy.run_path(str(path))["__doc__"]
    for word in ("python -m l2l_jax.main", f"configs/{path.name}", "Hardware", "Expected metrics"):
        assert word in docstring


@pytest.mark.parametrize(
    "name",
    ["digits_mae", "digits_vqgan", "digits_diffusion", "fashion_mae", "fashion_vqgan", "fashion_diffusion"],
)
def test_configs_with_two_methods(name):
    config = parse_config(raw_config(name))
    assert (config.unlearn.method, config.unlearn.optimizer) == ("undo", "muon")
    assert config.audit.enabled and config.unlearn.retain_budget is not None
    paper = parse_config(raw_config(f"{name}:encoder")).unlearn
    assert (paper.method, paper.optimizer) == ("encoder", "adamw")
    with pytest.raises(UserError, match="has the variant encoder, but none called 'redo'"):
        raw_config(f"{name}:redo")


@pytest.mark.parametrize(
    ("given", "cycles", "warmup"),
    [
        ({}, (500, 1000, 2000), 50),
        ({"steps": 2000}, (2000,), 50),
        ({"steps": Text("60")}, (60,), 6),
        ({"steps": 2000, "first_cycle": 600}, (600, 1400), 50),
    ],
)
def test_explicit_steps_are_used(given, cycles, warmup):
    config = parse_config(override(raw_config("fashion_mae"), {f"unlearn.{n}": x for n, x in given.items()}))
    assert (config.unlearn.cycles, config.unlearn.warmup_steps) == (cycles, warmup)


def changed(name, value):
    return override(raw_config(), {name: value})


MISTAKES = [
    ("unlearn.alhpa", 1.0, r"config.unlearn.alhpa does not exist. Did you mean config.unlearn.alpha\?"),
    ("modle", {}, r"config.modle does not exist. Did you mean config.model\?"),
    ("unlearn.alpha", -1.0, "config.unlearn.alpha is -1.0, but should be greater than or equal to 0"),
    ("unlearn.alpha", "much", "config.unlearn.alpha is 'much'"),
    ("unlearn.encoder", {"noise": "gauss"}, "'normal', 'uniform' or 'constant'"),
    ("unlearn.retain_budget", 0.9, "config.unlearn.retain_budget is 0.9, but should be greater than or"),
    ("unlearn.epsilon", {"epsilon_ratio": 1.5}, "config.unlearn.epsilon.epsilon_ratio is 1.5"),
    ("unlearn.distill", 0.5, "distill is an option of a method: name it config.unlearn.undo.distill"),
    ("unlearn.method", "ondo", "config.unlearn.method: There is no method 'ondo'. Did you mean 'undo'"),
    ("unlearn.methods", {}, "config.unlearn.methods does not exist"),
    ("audit.attacks", "relearn", "attacks: There is no attack 'relearn'. Did you mean 'relearning'"),
    ("audit.shots", (5,), "audit.shots is an option of attacks: name it config.audit.relearning.shots"),
    ("audit.relearning", {"shots": (5, 5)}, "config.audit.relearning: shots names a number twice"),
    ("unlearn.saliency", 0, "config.unlearn.saliency is 0, but should be greater than 0"),
    ("unlearn.adapter", "dora", "config.unlearn.adapter is 'dora'.*'lora' or 'norms'"),
    ("data.retain_images", "none", "config.data.retain_images is 'none'.*'real' or 'generated'"),
    ("unlearn.steps", 0, "config.unlearn: steps must be at least 1, not 0"),
    ("unlearn.batch_size", 2.5, "config.unlearn.batch_size is 2.5"),
    ("model.family", "vae", "config.model.family is 'vae'; known: .*mae"),
    ("model.num_heads", 5, "config.model: width 96 must be divisible"),
    ("model.dtype", "float16", "config.model: dtype must be one of float32, bfloat16, not .float16."),
    ("model.pretrained", 3, "config.model.pretrained is 3"),
    ("seed", -1, "config.seed is -1"),
    ("evaluate.networks", "inception,vgg", "config.evaluate.networks is 'vgg'"),
    ("data.crop", "middle", "config.data.crop is 'middle', .* 'resize', 'centre' or 'random'"),
    ("data.crop_scale", (0.2, 1.5), "config.data.crop_scale is 1.5, .* less than or equal to 1"),
    ("data.crop_ratio", (2.0, 0.5), "config.data: crop_ratio must be .minimum, maximum."),
    ("mesh.fdsp", 2, r"config.mesh.fdsp does not exist. Did you mean config.mesh.fsdp\?"),
    ("mesh.fsdp", 0, "config.mesh: fsdp must be at least 1, or -1, not 0"),
    ("mesh.fsdp", -1, "config.mesh: only one of data and fsdp can be -1"),
    ("parallel", "pjit", "config.parallel is 'pjit'.*'jit' or 'pmap'"),
    ("evaluate.tasks", ("centre_16",), "config.evaluate: the task centre_16: a centered mask"),
    ("evaluate.tasks", "center_8", "config.evaluate: there is no task 'center_8'"),
    ("data.forget", (1.5,), "config.data.forget: classes are text as typed"),
    ("data.test_fraction", 1.0, "config.data.test_fraction is 1.0, but should be less than 1"),
    ("data.proxy", ({"source": "csv", "wieght": 2},), "config.data.proxy.wieght does not exist"),
    ("data.proxy", ({"path": "a"},), "config.data.proxy.source is missing"),
    ("pretrain", 7, "config.pretrain must be a section"),
    ("pretrain", {"modle": {}}, r"config.pretrain.modle .* Did you mean config.pretrain.model\?"),
]


@pytest.mark.parametrize(
    ("flag", "section", "value"),
    [
        ("unlearn.alpha=1e-1", "unlearn", 0.1),
        ("unlearn.saliency_reset=true", "unlearn", True),
        ("unlearn.budget_original=0.5", "unlearn", "0.5"),
        ("unlearn.retain_budget=none", "unlearn", None),
        ("data.forget=5.0", "data", ("5.0",)),
        ("data.forget=True", "data", ("True",)),
        ("data.forget=(5.0, 07)", "data", ("(5.0, 07)",)),
        ("data.forget=it's, me", "data", ("it's, me",)),
        ("data.proxy_crop_scale=0.1,0.5", "data", (0.1, 0.5)),
        ("data.proxy_crop_scale=None", "data", None),
        ("audit.relearning.shots=[1, 2]", "audit", (1, 2)),
        ("audit.attacks=views,membership", "audit", ("views", "membership")),
        ("mesh.data=-1", "mesh", -1),
    ],
)
def test_flags_are_parsed_by_field_type(flag, section, value):
    rest, overrides = split_overrides([f"--config.{flag}", "--workdir=x"])
    assert rest == ["--workdir=x"]
    checked = parse_config(override(raw_config(), overrides))
    field = flag.partition("=")[0].partition(".")[2]
    assert operator.attrgetter(field)(getattr(checked, section)) == value


def test_flag_and_value_as_separate_arguments():
    argv = ["--config.a.b", "-1", "--noconfig.c", "--config.d", "--x", "--config.e", "f"]
    assert split_overrides(argv) == (["--x"], {"a.b": "-1", "c": "False", "d": "True", "e": "f"})


def test_warmup_is_shortened_with_overridden_steps():
    lowered = override(raw_config(), {"unlearn.steps": Text("10")})
    assert parse_config(lowered).unlearn.warmup_steps == 9
    with pytest.raises(UserError, match="warmup_steps 10 must be less than steps 10"):
        parse_config(override(lowered, {"unlearn.warmup_steps": Text("10")}))


@pytest.mark.parametrize("name", ["digits_mae", "digits_vqgan"])
def test_config_round_trip_through_json(name):
    config = parse_config(read_config(name))
    assert parse_config(upgrade(json.loads(json.dumps(config.describe())))) == config


def test_no_budget():
    """None in a config, 0 on a command line."""
    for value in (None, 0.0):
        assert parse_config(changed("unlearn.retain_budget", value)).unlearn.retain_budget is None


BUDGET, LORA, BANK = {"unlearn.retain_budget": 1.1}, {"unlearn.adapter": "lora"}, {"unlearn.noise_bank": 8}
ENCODER, MAX_LOSS = {"unlearn.method": "encoder"}, {"unlearn.method": "max_loss"}
ODD = {"unlearn.batch_size": 60, "unlearn.accumulate": 2}
TOGETHER = [
    ("digits_mae", {**BUDGET, "evaluate.tasks": ("random_75",)}, "budget is measured in a mask that all"),
    ("digits_mae", {**BUDGET, "unlearn.alpha": 0.0}, "alpha gives the weight 0: a retain_budget cannot"),
    ("digits_mae:encoder", {**LORA, "unlearn.saliency": 0.5}, "saliency must be 1"),
    ("digits_mae", LORA, "this method starts from others"),
    ("digits_mae", ODD, "batch_size 60 is not a multiple of accumulate × forget_every = 8"),
    ("digits_mae", {"model.variant": "vit_giant"}, "'vit_giant'; variants of mae: vit_base_patch16, "),
    ("digits_mae", BANK | ENCODER, "this family has no tokenizer: set both to 0"),
    ("digits_vqgan", BANK | ENCODER, "with config.model.paint_masked the codes depend on the mask"),
    ("vqgan", {"unlearn.token_bank": 2}, "config.unlearn: token_bank needs a noise_bank"),
    ("vqgan", BANK | MAX_LOSS, "noise_bank is for the methods encoder and whole, not for 'max_loss'"),
    ("digits_mae", {"data": {"forget": "1", "retain": "0"}}, "config.data.source is missing"),
]


ALONE = [("digits_mae", {name: value}, message) for name, value, message in MISTAKES]


@pytest.mark.parametrize(("name", "fields", "message"), ALONE + TOGETHER)
def test_invalid_configs_raise_user_errors(name, fields, message):
    with pytest.raises(UserError, match=message):
        parse_config(override(raw_config(name), fields))


def test_method_specific_rules_for_fields():
    epsilon = {"unlearn.alpha": 0.0, "unlearn.method": "epsilon"}
    assert parse_config(override(raw_config(), epsilon)).unlearn.weight == 0.5
    assert parse_config(override(raw_config(), {**ODD, "unlearn.method": "whole"})).unlearn.batch_parts == 2


@pytest.mark.parametrize("field", [{"model": {"pretrained": ""}}, {"audit": {"retrained": "train"}}])
def test_pretrain_section_is_required_only_for_training(field):
    config = raw_config()
    del config["pretrain"]
    parse_config(config)
    ((section, values),) = field.items()
    with pytest.raises(UserError, match=r"so a model is trained: give config.pretrain.model.steps"):
        parse_config(config | {section: config[section] | values})


def test_published_sizes_by_variant_name():
    """ViT-L/16: 24 layers, width 1024, 16 heads (Dosovitskiy et al. 2021, table 1)."""
    config = raw_config()
    config["model"] = {"family": "mae", "variant": "vit_large_patch16", "mask_ratio": 0.5}
    model = parse_config(config).model
    assert (model.depth, model.width, model.num_heads, model.patch_size) == (24, 1024, 16, 16)
    assert model.mask_ratio == 0.5 and model.image_size == 224


def test_networks_as_comma_separated_list():
    for given in ("inception,clip", ("inception,clip",), ("inception", "clip"), ["inception", "clip"]):
        assert parse_config(changed("evaluate.networks", given)).evaluate.networks == ("inception", "clip")
    assert parse_config(changed("evaluate.networks", "")).evaluate.networks == ()
