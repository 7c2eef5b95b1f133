"""The diffusion process compared with the release on `palette_schedule` and `palette_process`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.models.palette import diffusion
from tests.reference_arrays import Case, nhwc

SCHEDULE = Case("palette_schedule")
PROCESS = Case("palette_process")
TEST = np.linspace(1e-4, 0.09, 2000)
PUBLISHED = {"train": np.linspace(1e-6, 0.01, 2000), "test": TEST, "test1000": np.linspace(1e-4, 0.09, 1000)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_buffers_of_the_published_schedules(name):
    buffers = diffusion.schedule_buffers(PUBLISHED[name])
    index = SCHEDULE[f"{name}/idx"]
    for key, value in buffers.items():
        # Float64, then cast: equal up to the last bit of float32, even where γ is 4e-41.
        np.testing.assert_allclose(value[index], SCHEDULE[f"{name}/{key}"], rtol=1.2e-7)
        total = value.astype(np.float64).sum()
        np.testing.assert_allclose(total, SCHEDULE[f"{name}/{key}_sum"], rtol=1e-9)
    gammas = diffusion.cumulative_gammas(PUBLISHED[name])
    np.testing.assert_allclose(gammas[index], SCHEDULE[f"{name}/gammas64"], rtol=1e-12)


BETAS = {"train/betas": ("linear", 2000, 1e-6, 0.01), "test/betas": ("linear", 2000, 1e-4, 0.09)}
BETAS |= {f"small/{kind}": (kind, 12, 1e-4, 0.09) for kind in ("quad", "cosine", "warmup50", "const")}
BETAS |= {"small/linear_small": ("linear", 12, 1e-6, 0.01), "small/warmup10": ("warmup10", 30, 1e-4, 0.09)}


@pytest.mark.parametrize("name", BETAS)
def test_beta_schedules(name):
    arguments = BETAS[name]
    betas = diffusion.beta_schedule(*arguments)
    assert betas.shape == (arguments[1],) and betas.dtype == np.float64
    index = SCHEDULE[name.split("/")[0] + "/idx"] if name.endswith("/betas") else slice(None)
    np.testing.assert_allclose(betas[index], SCHEDULE[name], rtol=1e-12)


@pytest.mark.parametrize("wrong", [("sine", 9, 0.1, 0.2), ("linear", 0, 0.1, 0.2), ("linear", 9, 0.0, 0.2)])
def test_invalid_schedules_are_rejected(wrong):
    with pytest.raises(ValueError):
        diffusion.beta_schedule(*wrong)


def test_noise_levels_and_forward_noising():
    gammas = jnp.asarray(diffusion.cumulative_gammas(PUBLISHED["train"]), jnp.float32)
    drawn = diffusion.gamma_between(gammas, PROCESS["t"], PROCESS["u"][:, 0])
    np.testing.assert_allclose(drawn, PROCESS["sample_gammas"][:, 0], rtol=5e-7)
    gamma = PROCESS["sample_gammas"][:, 0]
    noisy = diffusion.q_sample(nhwc(PROCESS["y_0"]), gamma, nhwc(PROCESS["noise"]))
    np.testing.assert_allclose(noisy, nhwc(PROCESS["q_sample_original"]), atol=5e-7)


@pytest.mark.parametrize("t", [500, 20, 0])
def test_ancestral_step(t):
    """The network's output is given, to test only the step."""
    case = {name: PROCESS[f"ps/{t}/{name}"] for name in ("eps_hat", "y_0_hat", "mean", "out")}
    noisy, predicted = nhwc(PROCESS["ps/y_t"]), nhwc(case["eps_hat"])
    noise = nhwc(PROCESS[f"ps/{t}/noise"]) if t else np.full_like(noisy, np.pi)
    step = jax.tree.map(lambda x: x[len(TEST) - 1 - t], diffusion.ancestral_steps(TEST))
    np.testing.assert_allclose(step.gamma, PROCESS[f"ps/{t}/noise_level"][0, 0], rtol=1.2e-7)
    start = step.start_from_noisy * noisy - step.start_from_noise * predicted
    np.testing.assert_allclose(start, nhwc(case["y_0_hat"]), rtol=1e-5, atol=2e-6)
    mean = diffusion.reverse_step(step, noisy, predicted, np.zeros_like(noisy))
    np.testing.assert_allclose(mean, nhwc(case["mean"]), atol=1e-6)
    out = diffusion.reverse_step(step, noisy, predicted, noise)
    np.testing.assert_allclose(out, nhwc(case["out"]), atol=1e-6)


def test_ddim_step_by_hand():
    """Song et al. 2021, equation 12 with σ = 0, in float64, on three of ten steps."""
    betas = np.linspace(0.01, 0.4, 10)
    gammas = np.cumprod(1 - betas)
    rng = np.random.default_rng(0)
    noisy, predicted = rng.standard_normal((2, 1, 4, 4, 3))
    steps = diffusion.ddim_steps(betas, 3)
    for i, (t, before) in enumerate([(9, 4), (4, 0), (0, None)]):
        g, h = gammas[t], 1.0 if before is None else gammas[before]
        start = np.clip((noisy - np.sqrt(1 - g) * predicted) / np.sqrt(g), -0.7, 0.7)
        direction = (noisy - np.sqrt(g) * start) / np.sqrt(1 - g)
        expected = np.sqrt(h) * start + np.sqrt(1 - h) * direction
        step = jax.tree.map(lambda x, i=i: x[i], steps)
        given = np.float32([noisy, predicted, noisy])
        actual = diffusion.reverse_step(step, *given, value_range=(-0.7, 0.7))
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("count", [0, 11])
def test_invalid_ddim_step_counts(count):
    with pytest.raises(ValueError, match="1 to 10"):
        diffusion.ddim_steps(np.full(10, 0.1), count)
