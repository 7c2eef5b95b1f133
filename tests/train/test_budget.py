"""Retain budgets: rules by hand, and a run with a known result."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from l2l_jax.errors import Interrupted
from l2l_jax.experiment.budget import outcome_of
from l2l_jax.train import budget as rules
from l2l_jax.train import loop, sharding
from l2l_jax.train.budget import Measured, RetainBudget, limit_at, next_weight
from l2l_jax.train.hooks import read_metrics
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.unlearning_config import UnlearningConfig
from l2l_jax.train.validation_errors import MaskedErrors
from tests.fixtures.training import Watched, crash_at, signal_at
from tests.matrix import soak
from tests.train import toy

CONFIG = TrainingConfig(
    steps=120, batch_size=8, learning_rate=0.02, beta2=0.9, weight_decay=0.0, checkpoint_every=35, log_every=1
)
CYCLES = UnlearningConfig(
    **{**dataclasses.asdict(CONFIG), "steps": 280}, first_cycle=40, retain_budget=1.5, budget_every=4
)
"""Cycles of 40, 80 and 160 steps."""


def test_limit_decreases_to_the_budget():
    assert limit_at(1.25, 2.0, 0.0) == pytest.approx(2.0)
    assert limit_at(1.25, 2.0, 0.5) == pytest.approx(math.sqrt(1.25 * 2.0))  # the logarithmic midpoint
    assert limit_at(1.25, 2.0, 1.0) == pytest.approx(1.25)
    assert limit_at(1.25, 9.0, 0.0) == pytest.approx(2 * 1.25)  # at most two budgets
    assert limit_at(1.25, 1.1, 0.3) == limit_at(1.25, math.nan, 0.3) == 1.25


def test_weight_updates():
    assert next_weight(0.2, 1.2, 1.2, 1.2, rate=3) == pytest.approx(0.2)
    assert next_weight(0.2, 1.2, 1.26, 1.26, rate=2) == pytest.approx(0.2 * (1.2 / 1.26) ** 2)
    assert next_weight(0.2, 1.2, 1.17, 1.17, rate=2) == pytest.approx(0.2 * (1.2 / 1.17) ** 2)
    # The ratio decreases from 1.3 to 1.26, so 1.26² / 1.3 = 1.2212 is predicted.
    assert next_weight(0.2, 1.2, 1.26, 1.3, rate=2) == pytest.approx(0.2 * (1.2 / 1.221231) ** 2, rel=1e-5)
    assert next_weight(0.2, 1.2, 9.0, 9.0, rate=2) == pytest.approx(0.2 / 1.5)
    assert next_weight(0.2, 1.2, 0.1, 0.1, rate=2) == next_weight(0.2, 1.2, 0, 0, 2) == pytest.approx(0.3)
    assert next_weight(0.2, 1.2, 0.1, 0.1, rate=2, most=0.25) == 0.25
    for lost in (math.inf, math.nan):
        assert next_weight(0.2, 1.2, lost, 1.2, rate=2) == pytest.approx(0.2 / 1.5)


def test_best_model_forgets_most_within_the_budget():
    inside = [Measured(1, 0.1, 1.05, 3.0), Measured(2, 0.2, 1.2, 7.0), Measured(3, 0.2, 1.19, 5.0)]
    outside = [Measured(4, 0.3, 1.3, 9.0), Measured(5, 0.3, 1.21, 8.0), Measured(6, 0.3, math.nan, 99.0)]
    assert max(inside + outside, key=lambda m: m.rank(1.2, True)).step == 2
    assert max(inside + outside, key=lambda m: m.rank(1.2, m.step >= 3)).step == 3  # step 2 was too early
    assert max(inside + outside, key=lambda m: m.rank(1.2, False)).step == 2
    assert max(outside, key=lambda m: m.rank(1.2, True)).step == 5
    assert min(outside, key=lambda m: m.rank(1.2, True)).step == 6


@functools.cache
def trainer(layout, sign):
    """Return the trainer shared by all runs on a layout, whose step is compiled once."""
    kind, data, model = layout
    mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
    return loop.Trainer("unlearn", toy.objective(sign), CONFIG, seed=0, mesh=mesh, parallel=kind)


@functools.cache
def make_errors(parallel):
    rows = 8 * parallel.mesh.size
    return MaskedErrors(toy.Gain, toy.MASK, toy.validation(), rows=rows, seed=0, parallel=parallel)


def make_budget(budget, every=4, **more):
    config = UnlearningConfig(steps=CONFIG.steps, retain_budget=budget, budget_every=every, budget_rate=6.0)
    return RetainBudget(config, make_errors, **more)


def run(folder, budget, *, alpha, sign=1.0, batches=None, layout=("jit", 1, 1)):
    batches = batches or toy.batches()
    started = loop.TrainRun(toy.params(), batches, folder, alpha=alpha, budget=budget)
    params = trainer(layout, sign).train(started)
    return float(params["encoder"]["gain"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder, budget = tmp_path_factory.mktemp("whole"), make_budget(1.5)
    return run(folder, budget, alpha=0.25), outcome_of(budget), read_metrics(folder)


@pytest.mark.parametrize("alpha", [0.02, soak(0.25), 1.0])
def test_budget_is_used_and_held(alpha, tmp_path):
    """The retain error is (1 − w)²/0.01 times the original's, and the minimum loss is at w = 1 / (1 + α)."""
    budget = make_budget(1.5)
    gain = run(tmp_path, budget, alpha=alpha)
    outcome = outcome_of(budget)
    assert outcome.met and 1.15 < outcome.retain.value <= 1.5
    assert outcome.retain.value == pytest.approx((1 - gain) ** 2 / 0.01, rel=1e-4)
    assert outcome.forget.value == pytest.approx((1 - gain) ** 2 / 0.01, rel=1e-4)
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert outcome.weight == rows[outcome.step]["alpha"]
    assert outcome.images == {"retain": 3, "forget": 2}
    # All images have equal errors, so every resample gives the same ratio.
    assert outcome.retain.low == pytest.approx(outcome.retain.high)


def test_budget_with_gradient_ascent(uninterrupted, tmp_path):
    """Ascent on the negative forget loss equals descent on the loss: equal results up to the sign."""
    budget = make_budget(1.5)
    run(tmp_path, budget, alpha=0.25, sign=-1.0)
    assert outcome_of(budget).met and outcome_of(budget).retain.value > 1.15
    for mine, theirs in zip(read_metrics(tmp_path)[:40], uninterrupted[2][:40], strict=True):
        assert mine == pytest.approx({**theirs, "forget": -theirs["forget"]}, rel=1e-3)


def test_infeasible_budget(tmp_path):
    """The weight decreases too late: the model with the smallest cost is kept, and the budget is not met."""
    budget = make_budget(1.0001, every=40)
    run(tmp_path, budget, alpha=1.0)
    outcome = outcome_of(budget)
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    measured = [rows[43]["retain_ratio"], rows[83]["retain_ratio"]]
    assert not outcome.met and 1.0001 < outcome.retain.value <= min(measured)
    assert json.loads(json.dumps(outcome.describe()))["met"] is False


def test_measurements_take_effect_after_a_fixed_delay(uninterrupted):
    """Measured after steps 4, 8, …; step n + 3 is the first whose weight uses the measurement of step n."""
    rows = {row["step"]: row for row in uninterrupted[2]}
    assert rules.LAG == 2
    assert rows[6]["alpha"] == 0.25 and "retain_ratio" not in rows[6] and "retain_ratio" in rows[7]
    changed = [n for n in range(2, 121) if rows[n]["alpha"] != rows[n - 1]["alpha"]]
    assert {n % 4 for n in changed} == {3} and len(changed) > 15
    first = rows[35]["retain_ratio"]  # step 32, the first after a quarter of the run
    for n in (n for n in changed if n >= 39):
        # The limit equals the budget from 70% of the run: step 84.
        limit = limit_at(1.5, first, min(1, (n - 3 - 32) / (84 - 32)))
        ratio, before = rows[n]["retain_ratio"], rows[n - 1]["retain_ratio"]
        expected = next_weight(rows[n - 1]["alpha"], limit, ratio, before, rate=6.0)
        assert rows[n]["alpha"] == pytest.approx(expected)


# Every run stops before the weight changes, near the end, and by a crash
STOPS = [soak(signal_at(36)), signal_at(37), soak(signal_at(39)), signal_at(110), crash_at(71)]


@pytest.mark.parametrize("stop", STOPS)
def test_resuming_is_bit_identical_from_any_step(stop, uninterrupted, tmp_path):
    """After a measurement, before and when it takes effect, near the end; a finished run has its outcome."""
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run(tmp_path, make_budget(1.5), alpha=0.25, batches=Watched(toy.batches(), stop))
    for _ in range(2):
        budget = make_budget(1.5)
        assert run(tmp_path, budget, alpha=0.25) == uninterrupted[0]
        assert (outcome_of(budget), read_metrics(tmp_path)) == uninterrupted[1:]


# Only batches over devices in soak tests; also split parameters and pmap in every run
@pytest.mark.parametrize("layout", [soak(("jit", 8, 1)), ("jit", 2, 2), ("pmap", 8, 1)])
def test_results_do_not_depend_on_devices(layout, uninterrupted, tmp_path):
    budget = make_budget(1.5)
    gain = run(tmp_path, budget, alpha=0.25, layout=layout)
    assert gain == pytest.approx(uninterrupted[0], rel=1e-4)
    for mine, theirs in zip(read_metrics(tmp_path), uninterrupted[2], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2, abs=1e-6)


def test_budget_relative_to_another_model(tmp_path):
    """Relative to w = 0.8, whose retain error is 0.04, a ratio of 1.5 is (1 − w)² = 0.06."""
    reference = {**toy.params(), "encoder": {"gain": np.float32(0.8)}}
    budget = make_budget(1.5, reference=reference)
    gain = run(tmp_path, budget, alpha=0.25)
    assert outcome_of(budget).retain.value == pytest.approx((1 - gain) ** 2 / 0.04, rel=1e-4)
    assert 1.15 < outcome_of(budget).retain.value <= 1.5


def test_weight_is_bounded_where_it_has_no_effect(caplog):
    """Ratios are constant from step 60, far below the budget: the weight increases at most tenfold."""
    budget = make_budget(1.5)
    budget._memory.weight, weights = 0.2, []
    with caplog.at_level("INFO", logger="l2l_jax"):
        for step in range(40, 120, 4):
            forget = 5 + min(step, 60) / 10
            budget._act(rules.Measured(step, budget._memory.weight, 0.9, forget))
            weights.append(budget._memory.weight)
    still = 0.2 * 1.5**5  # the ratio of step 60
    assert weights[4] == pytest.approx(still) and weights[-1] == pytest.approx(10 * still)
    assert caplog.messages == [
        f"A larger alpha has had no effect since step 60 (forget ratio 11.000): it stays at {10 * still:.3g}"
    ]
    budget._act(rules.Measured(120, weights[-1], 2.0, 11.0))
    assert budget._memory.weight == pytest.approx(weights[-1] / 1.5)  # it can still decrease


@pytest.fixture(scope="module")
def cyclic():
    return loop.Trainer(
        "unlearn", toy.objective(1.0), CYCLES, seed=0, mesh=sharding.make_mesh(jax.devices()[:1])
    )


def run_cycles(trainer, folder, batches=None, **changes):
    budget = RetainBudget(dataclasses.replace(CYCLES, **changes), make_errors)
    started = loop.TrainRun(toy.params(), batches or toy.batches(), folder, alpha=0.25, budget=budget)
    params = trainer.train(started)
    return float(params["encoder"]["gain"]), budget.ended, outcome_of(budget), read_metrics(folder)


def test_run_ends_with_the_first_cycle_that_meets_the_budget(cyclic, tmp_path):
    """The retain ratio is 1.25 after 40 of at most 280 steps."""
    gain, ended, outcome, rows = run_cycles(cyclic, tmp_path)
    assert outcome.met and ended == len(rows) == 40
    assert outcome.retain.value == pytest.approx((1 - gain) ** 2 / 0.01, rel=1e-4)
    again = run_cycles(cyclic, tmp_path)
    assert again == (gain, ended, outcome, rows)


def test_missed_budget_uses_all_cycles(cyclic, tmp_path):
    """A budget of 1 cannot be met, because w is 0.8 at the optimum."""
    missed = dict(retain_budget=1.0, budget_rate=1e-9)
    gain, ended, outcome, rows = run_cycles(cyclic, tmp_path, **missed)
    assert not outcome.met and ended == len(rows) == 280
    rates = [row["learning_rate"] for row in rows]
    assert [rates.index(rate) for rate in rates if rate == max(rates)] == [0] * 3
    assert [n for n in range(280) if rates[n] == max(rates)] == [0, 40, 120]
    with pytest.raises(Interrupted):
        run_cycles(cyclic, tmp_path / "again", Watched(toy.batches(), signal_at(131)), **missed)
    again = run_cycles(cyclic, tmp_path / "again", **missed)
    assert again == (gain, ended, outcome, rows)


def test_increasing_forget_error_has_not_converged(caplog):
    """The error increases by more than a quarter in the last 30% of a cycle, or not."""
    for last, ended in ((6.3, None), (6.2, 40)):
        budget = RetainBudget(CYCLES, make_errors)
        late = Measured(28, 0.1, 1.4, 5.0)
        newest = Measured(40, 0.1, 1.4, last)
        budget._memory = rules._Memory(0.1, settling=late, best=newest, waiting=[newest])
        budget._end_cycle(40)
        assert budget._memory.ended == ended


def test_lengths_of_cycles(cyclic, tmp_path):
    for steps, lengths in {3500: (500, 1000, 2000), 1600: (500, 1100), 600: (600,), 20: (20,)}.items():
        assert UnlearningConfig(steps=steps, first_cycle=500).cycles == lengths
    assert UnlearningConfig(steps=700).cycles == (700,)
    with pytest.raises(ValueError, match="warmup_steps 50 must be less than first_cycle 40"):
        UnlearningConfig(steps=120, first_cycle=40, warmup_steps=50)
    cyclic.train(loop.TrainRun(toy.params(), toy.batches(), tmp_path))
    assert len(read_metrics(tmp_path)) == 40
