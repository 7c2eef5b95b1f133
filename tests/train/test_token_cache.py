"""Token banks: codes equal to those of each step, computed once."""

import dataclasses
import functools
import os
import signal

import jax
import numpy as np
import pytest

from l2l_jax.data.loader import TrainingBatches
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import Interrupted
from l2l_jax.losses import batch_noise
from l2l_jax.methods import METHODS
from l2l_jax.train import sharding, token_cache
from l2l_jax.train.token_cache import Codes, cached_objective, open_token_cache
from l2l_jax.train.unlearning_config import UnlearningConfig
from tests.fixtures.training import Images
from tests.models.test_mage import random_params
from tests.train.families import MODELS, params_of

MODEL = dataclasses.replace(MODELS["mage"], width=8, decoder_width=8, num_res_blocks=0)
SEED, STEPS, BATCH = 5, 6, 8
SIZES = {"retain": 20, "forget": 15}
ALL = ("retain", "forget", "noise")
HOW = UnlearningConfig(token_bank=4, noise_bank=STEPS * BATCH)
"""A bank as large as the run: 48 positions, 3 and 4 epochs."""


def images(before=lambda index: None):
    transform = Transform(TransformConfig(crop="random", flip=True), 8, training=True)
    sets = {name: Images(count, before) for name, count in SIZES.items()}
    return TrainingBatches(sets, BATCH, value_range=(0, 1), seed=3, transforms=dict.fromkeys(sets, transform))


tokenize = jax.jit(MODEL.tokenize)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:2])


@pytest.fixture(scope="module")
def bank(params, mesh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    return open_token_cache(folder, HOW, MODEL, params, images(), seed=SEED, mesh=mesh)


@jax.jit
def noise_of(batch, step):
    """Return the noise images of a step without a bank."""
    rng = jax.random.fold_in(jax.random.key(SEED), step)
    return batch_noise(batch["retain"], batch["forget"], rng)


def test_codes_match_each_step(bank, params):
    for step, pixels, codes in zip(range(STEPS), images(), bank, strict=False):
        assert set(codes) == {"retain", "forget", "noise"}
        for name, pixel_values in {**pixels, "noise": noise_of(pixels, step)}.items():
            assert codes[name].dtype == np.uint16 and codes[name].shape == (BATCH, MODEL.tokens)
            np.testing.assert_array_equal(codes[name], tokenize(params, pixel_values))


def prepared_by(objective, params):
    frozen = {part: params[part] for part in objective.frozen}

    @jax.jit
    def prepare(frozen, batch, step):
        return objective.prepare(frozen, batch, jax.random.fold_in(jax.random.key(SEED), step))

    return functools.partial(prepare, frozen)


def test_step_inputs_are_the_same_with_and_without_a_bank(bank, params):
    prepare = prepared_by(METHODS["encoder"]().objective(MODEL), params)
    for step, pixels, codes in zip(range(STEPS), images(), bank, strict=False):
        jax.tree.map(np.testing.assert_array_equal, prepare(pixels, step), prepare(codes, step))


def test_latents_include_their_masks(tmp_path):
    """Step inputs are the same as without a cache; noise also has the mask of its forget image."""
    model, sets = MODELS["latent_diffusion"], {name: Images(16) for name in SIZES}
    pixels = TrainingBatches(sets, BATCH, value_range=model.value_range, seed=3)
    params, cfg = params_of(model), UnlearningConfig(token_bank=4, noise_bank=0)
    mesh = sharding.make_mesh(jax.devices()[:1])
    bank = open_token_cache(tmp_path, cfg, model, params, pixels, seed=SEED, mesh=mesh)
    plain = METHODS["encoder"]().objective(model)
    lean = cached_objective(plain, model, ALL)
    assert lean.frozen == ("encoder", "prompts")

    without, with_codes = prepared_by(plain, params), prepared_by(lean, params)
    for step, images, codes in zip(range(STEPS), pixels, bank, strict=False):
        both = without(images, step), with_codes(codes, step)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *both)
    later = [batch for batch, _ in zip(bank, range(12), strict=False)][-1]
    np.testing.assert_array_equal(later["noise"][..., -1], later["forget"][..., -1])
    assert np.abs(later["retain"][..., -1] - later["forget"][..., -1]).max() == 1


def test_training_needs_no_tokenizer(bank, params):
    """experiment/test_unlearn.py trains a model on codes."""
    objective = cached_objective(METHODS["encoder"]().objective(MODEL), MODEL, ALL)
    assert objective.frozen == objective.trained == ("encoder",)
    lean, batch = {"encoder": params["encoder"]}, next(iter(bank))
    inputs = jax.eval_shape(objective.prepare, lean, batch, jax.random.key(0))
    _, gradients = jax.eval_shape(objective.gradients, lean, lean, inputs, np.float32(0))
    assert jax.tree.map(np.shape, gradients["loss"]) == jax.tree.map(np.shape, lean)


def test_views_and_noise_repeat_in_another_order(bank):
    batches = [batch for batch, _ in zip(bank, range(40), strict=False)]
    stream = np.concatenate([batch["retain"] for batch in batches])
    first, again = stream[:20], stream[80:100]  # epochs 0 and 4 of 20 images in 4 views
    assert {tuple(row) for row in first} == {tuple(row) for row in again}
    assert (first != again).any()
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert sorted(map(tuple, noise[:48])) == sorted(map(tuple, noise[48:96]))
    assert (noise[:48] != noise[48:96]).any()


def test_interrupted_bank_resumes(bank):
    iterator = iter(bank)
    next(iterator)
    state = iterator.get_state()
    expected, other = next(iterator), iter(bank)
    other.set_state(state)
    assert state == {"batches": 1, "processes": 1}
    for name, codes in next(other).items():
        np.testing.assert_array_equal(codes, expected[name])


def test_bank_of_noise_only(params, mesh, tmp_path):
    cfg = UnlearningConfig(token_bank=0, noise_bank=12)
    bank = open_token_cache(tmp_path, cfg, MODEL, params, images(), seed=SEED, mesh=mesh)
    objective = METHODS["encoder"]().objective(MODEL)
    assert cached_objective(objective, MODEL, ("noise",)).frozen == ("encoder", "tokenizer")  # for images
    noises, codes = [], []
    for step, pixels, batch in zip(range(2), images(), bank, strict=False):
        np.testing.assert_array_equal(batch["retain"], pixels["retain"])
        noises += [*np.asarray(tokenize(params, noise_of(pixels, step)))]
        codes += [*batch["noise"]]
    np.testing.assert_array_equal(codes[:12], noises[:12])
    assert {tuple(row) for row in codes[12:]} <= {tuple(row) for row in codes[:12]}  # the pool repeats


def test_signal_stops_the_bank_and_it_resumes(params, mesh, bank, tmp_path, monkeypatch):
    read = []

    def signal_at_30(index):
        read.append(index)
        if len(read) == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("l2l_jax.data.loader.AHEAD", (1, 1))
    monkeypatch.setattr(token_cache, "NOTE_EVERY", 1)
    with pytest.raises(Interrupted) as stopped:
        open_token_cache(tmp_path, HOW, MODEL, params, images(signal_at_30), seed=SEED, mesh=mesh)
    assert 0 < stopped.value.step < 10
    written = []
    write = Codes.write
    monkeypatch.setattr(Codes, "write", lambda c, *what: written.append(c.path.stem) or write(c, *what))
    again = open_token_cache(tmp_path, HOW, MODEL, params, images(), seed=SEED, mesh=mesh)
    assert written.count("retain") == 10 - stopped.value.step
    for name, codes in bank.codes.items():
        np.testing.assert_array_equal(np.load(again.codes[name].path), np.load(codes.path))
    read.clear()
    open_token_cache(tmp_path, HOW, MODEL, params, images(read.append), seed=SEED, mesh=mesh)
    assert not read  # the bank was complete


def test_bank_depends_on_the_tokenizer(params, mesh, tmp_path):
    cfg = UnlearningConfig(token_bank=0, noise_bank=8)
    banks = []
    embedding = params["tokenizer"]["quantize"]["embedding"]
    for codebook in (embedding, embedding[::-1]):
        changed = {**params, "tokenizer": {**params["tokenizer"], "quantize": {"embedding": codebook}}}
        opened = open_token_cache(tmp_path, cfg, MODEL, changed, images(), seed=SEED, mesh=mesh)
        banks.append(np.load(opened.codes["noise"].path))
    np.testing.assert_array_equal(banks[1], MODEL.codebook_size - 1 - banks[0])
