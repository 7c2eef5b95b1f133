"""MAGE compared with the release on `mage_tiny` and `mage_unlearn_loss`, and its properties."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from l2l_jax.models import mapping
from l2l_jax.models.layers.vit import sincos_position_table
from l2l_jax.models.mage.convert import TABLE
from l2l_jax.models.mage.model import MAGE
from tests.reference_arrays import Case, fill, nhwc

CASE, UNLEARN = Case("mage_tiny"), Case("mage_unlearn_loss")
SIZES = dict(width=48, depth=2, num_heads=4, decoder_width=48, decoder_depth=2, decoder_num_heads=4)
TOKENIZER = dict(codebook_size=64, codebook_width=16, base_channels=32, channel_multipliers=(1, 1, 2))
TINY = MAGE(image_size=64, num_res_blocks=1, dropout=0.0, blend_margin=3, **SIZES, **TOKENIZER)
SIZES = dict(width=16, depth=1, num_heads=2, decoder_width=16, decoder_depth=1, decoder_num_heads=2)
TOKENIZER = dict(codebook_size=8, codebook_width=4, base_channels=8, channel_multipliers=(1, 1, 2), groups=4)
EXACT = dict(hidden_margin=0, blend_margin=0, blend_sigma=0.0)
DIGITS = MAGE(image_size=16, num_res_blocks=1, **SIZES, **TOKENIZER, **EXACT)


def state_dict(prefix: str = "") -> dict[str, np.ndarray]:
    """Return the weights of all MAGE cases; "teacher:" is the teacher's with the student's tokenizer."""
    fixed = {
        "pos_embed": sincos_position_table(48, 16)[None],
        "decoder_pos_embed": sincos_position_table(48, 16)[None],
        "token_emb.position_ids": np.arange(257)[None],
    }
    return {
        key: fixed[key] if key in fixed else fill(key if key.startswith("vqgan.") else prefix + key, shape)
        for key, shape, _ in CASE.description["state_dict"]
    }


@functools.cache
def tiny_params(prefix: str = ""):
    return mapping.to_flax(TABLE, state_dict(prefix), TINY.shapes(), TINY)


mask = jax.jit(TINY.mask, static_argnames=("num_drop", "num_mask"))
corrupt_digits = jax.jit(DIGITS.corrupt)


@functools.cache
def random_params(model: MAGE):
    """Unit scales, zero biases and normal kernels; sampling with JAX would be slower."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        n = rng.standard_normal(shape.shape, np.float32)
        named = {"scale": np.ones_like(n), "bias": np.zeros_like(n)}
        return named.get(path[-1].key, n / np.float32(np.sqrt(max(n.size // n.shape[-1], 1))))

    return jax.tree_util.tree_map_with_path(leaf, model.shapes())


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def corrupted():
    return jax.device_get(mask(CASE["token_indices"], CASE["noise"], num_drop=128, num_mask=140))


@pytest.fixture(scope="module")
def digits():
    return random_params(DIGITS)


def unlearning_case(name: str, rows: slice):
    tokens = UNLEARN[f"shared_vqgan/tokens_{name}"]
    return jax.device_get(mask(tokens[rows], UNLEARN["noise"][rows], num_drop=128, num_mask=140))


def assert_gradients(grads, case, prefix):
    names = [name for name in case._arrays.files if name.startswith(prefix)]
    assert len(names) >= 3
    for key, grad in mapping.to_torch(TABLE, grads, TINY).items():
        if prefix + key in names:
            expected = case[prefix + key]
            assert np.abs(grad - expected).max() <= 1e-5 * np.abs(expected).max(), key


def test_ids_are_determined_by_the_codebook_size():
    names = ("fake_class_label", "mask_token_label", "vocab_size")
    expected = tuple(CASE.description["derived"][name] for name in names)
    assert (TINY.class_id, TINY.mask_id, TINY.vocabulary) == expected
    full = MAGE(**MAGE.VARIANTS["vit_base_patch16"])
    assert (full.class_id, full.mask_id, full.vocabulary) == (1100, 2024, 2025)
    assert (full.patch_size, full.tokens) == (16, 256)


def test_masking_follows_the_noise(corrupted):
    np.testing.assert_array_equal(corrupted["masked"], CASE["token_all_mask_raw"].astype(bool))
    dropped = np.pad(CASE["token_drop_mask_raw"], ((0, 0), (1, 0))).astype(bool)
    expected = CASE["token_indices_masked"][~dropped].reshape(2, 129)
    np.testing.assert_array_equal(corrupted["ids"], expected)
    np.testing.assert_array_equal(corrupted["positions"], np.nonzero(~dropped)[1].reshape(2, 129))


def test_latent_logits_loss_and_gradients(params, corrupted):
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def compute(params):
        latent, predicted = TINY.encode_and_predict(params, corrupted)
        losses = TINY.prediction_loss(predicted, None, corrupted)
        return losses.mean(), (losses, latent, TINY.decode(params, latent, corrupted["source"]))

    (value, (losses, latent, logits)), grads = compute(params)
    np.testing.assert_allclose(latent, CASE["latent"], atol=1e-5)
    np.testing.assert_allclose(logits, CASE["logits"], atol=2e-5)
    assert losses.shape == (2,)
    np.testing.assert_allclose(value, CASE["loss"], atol=5e-6)
    assert_gradients(grads, CASE, "grad/")
    for part in ("tokenizer", "unused"):
        assert not any(np.any(g) for g in jax.tree.leaves(grads[part]))


def test_same_key_gives_same_masks_for_other_images(digits):
    """Student and teacher must receive the same sample of T; only the codes may differ."""
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    given = ((images, 3), (np.zeros_like(images), 3), (images, 4))
    a, b, other = (jax.device_get(corrupt_digits(digits, x, jax.random.key(seed))) for x, seed in given)
    assert np.any(a["targets"] != b["targets"])
    for name in ("masked", "positions", "source", "dropout_keep"):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    np.testing.assert_array_equal(a["ids"] == DIGITS.mask_id, b["ids"] == DIGITS.mask_id)
    assert np.any(a["masked"] != other["masked"]) and other["ids"].shape == a["ids"].shape


def test_masked_fraction_is_a_truncated_normal(digits):
    """16 tokens: half dropped, ⌈16 · fraction⌉ masked, equal within a batch; the mean is from SciPy."""
    images = np.zeros((2, 16, 16, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: DIGITS.corrupt(digits, images, key)["masked"].sum(1)))
    counts = np.asarray(draw(keys))
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
    law = stats.truncnorm((0.5 - 0.55) / 0.25, (1.0 - 0.55) / 0.25, loc=0.55, scale=0.25)
    edges = np.arange(8, 17) / 16
    probability = np.diff(law.cdf(edges))  # probability of 9, 10, …, 16 masked tokens
    observed = np.bincount(counts[:, 0], minlength=17)
    assert observed[:9].sum() == 0
    deviation = np.sqrt(2000 * probability * (1 - probability))
    assert np.all(np.abs(observed[9:] - 2000 * probability) < 5 * deviation)


def test_dropout_is_applied_as_sampled():
    """An encoder without blocks: channels that dropout keeps are scaled by 1 / 0.9."""
    model = DIGITS.replace(depth=0)
    params = random_params(model)
    corrupted = jax.jit(model.corrupt)(params, np.zeros((64, 16, 16, 3)), jax.random.key(0))
    kept = np.asarray(corrupted["dropout_keep"])
    assert kept.shape == (64, 9, 16)
    assert abs(kept.mean() - 0.9) < 5 * np.sqrt(0.09 / kept.size)

    def normalized(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    tables = jax.tree.map(np.asarray, params["encoder"]["token_emb"])
    embedding = tables["word_embeddings"][corrupted["ids"]]
    embedding = normalized(embedding + tables["position_embeddings"][corrupted["positions"]])
    encode = jax.jit(model.encode)
    expected = normalized(np.where(kept, embedding / 0.9, 0))
    np.testing.assert_allclose(encode(params["encoder"], corrupted), expected, atol=1e-4)
    del corrupted["dropout_keep"]
    np.testing.assert_allclose(encode(params["encoder"], corrupted), normalized(embedding), atol=1e-4)


def test_pretraining_stages(params):
    tokenizer, model = TINY.pretraining_stages()
    assert (tokenizer.name, tokenizer.trained) == ("tokenizer", ("tokenizer",))
    assert (model.name, model.trained) == ("model", ("encoder", "decoder"))
    images = nhwc(CASE["images"])
    inputs = jax.jit(tokenizer.prepare)({}, images, jax.random.key(0))
    losses = jax.jit(tokenizer.loss)({"tokenizer": params["tokenizer"]}, inputs)
    expected = np.square(CASE["vq_decoded"] - CASE["images"]).mean() + CASE["vq_emb_loss"]
    assert losses.shape == (2,)
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)
    inputs = jax.eval_shape(model.prepare, params, images, jax.random.key(0))
    assert jax.eval_shape(model.loss, params, inputs).shape == (2,)


PAINTED = DIGITS.replace(paint_masked=True, dropped=0.0, dropout=0.0)


corrupt_painted, tokenize_painted = jax.jit(PAINTED.corrupt), jax.jit(PAINTED.tokenize)


def pixels(tokens):
    """Expand `[batch, 16]` to `[batch, 16, 16, 1]`: a token covers 4×4 pixels."""
    return np.kron(np.asarray(tokens).reshape(-1, 4, 4), np.ones((4, 4), bool))[..., None]


def test_visible_tokens_match_inpainting(digits):
    """The image filled in NumPy, then tokenized, mask tokens where hidden; targets of complete images."""
    a, b = np.random.default_rng(0).random((2, 3, 16, 16, 3), np.float32)
    key, color = jax.random.key(1), np.array(PAINTED.hole_color, np.float32).reshape(1, 1, 1, 3)
    corrupted = jax.device_get(corrupt_painted(digits, a, key))
    hidden = corrupted["masked"]
    ids = np.array(tokenize_painted(digits, np.where(pixels(hidden), color, a)))
    ids[hidden] = PAINTED.mask_id
    np.testing.assert_array_equal(corrupted["ids"][:, 1:], ids)
    np.testing.assert_array_equal(corrupted["targets"], tokenize_painted(digits, a))
    other = jax.device_get(corrupt_painted(digits, np.where(pixels(hidden), b, a), key))
    np.testing.assert_array_equal(corrupted["ids"], other["ids"])
    assert np.any(corrupted["targets"][~hidden] != other["targets"][~hidden])


def test_tokenizer_is_trained_on_filled_and_complete_images(digits):
    """Latents are those of the complete image in hidden squares, and of the filled image elsewhere."""
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    stage = PAINTED.pretraining_stages()[0]
    inputs = jax.jit(stage.prepare)({}, images, jax.random.key(1))
    complete, painted, hidden = map(np.asarray, inputs)
    np.testing.assert_array_equal(complete, images)
    changed = np.any(painted != images, axis=-1, keepdims=True)
    np.testing.assert_array_equal(changed, pixels(hidden))
    assert 0 < hidden.mean() < 1

    variables = {"params": digits["tokenizer"]}
    latent = jax.jit(lambda x: PAINTED.tokenizer.apply(variables, x, method=lambda m, x: m.encoder(x)))
    mixed = np.where(hidden[..., None], latent(images), latent(painted))
    codes = np.asarray(digits["tokenizer"]["quantize"]["embedding"])
    ids = np.square(mixed[..., None, :] - codes.reshape(1, 1, 1, *codes.shape)).sum(-1).argmin(-1)
    codebook = 1.25 * np.square(codes[ids] - mixed).mean(axis=(1, 2, 3))
    restored = jax.jit(PAINTED.decode_ids)(digits, ids.reshape(3, 16))
    expected = np.square(restored - images).mean(axis=(1, 2, 3)) + codebook
    losses = jax.jit(stage.loss)({"tokenizer": digits["tokenizer"]}, inputs)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


WRONG = dict(image_size=62, num_heads=5, decoder_num_heads=5, groups=24, dropped=1.0, dropout=1.0)
WRONG |= dict(hole_color=(0.5,), dtype="int8", choice_temperature=-1.5, sampling_temperature=-0.5)


@pytest.mark.parametrize("name", WRONG)
def test_invalid_sizes_are_rejected(name):
    with pytest.raises(ValueError, match=str(WRONG[name]).strip("()")):
        TINY.replace(**{name: WRONG[name]})
