"""A budget for the cost of unlearning, which adapts the weight of the forget term to the retain error.

The final masked MSE of retain validation images, relative to the original model, must be below a budget. The
weight is updated by dual ascent on that constraint, in log space (exponentiated gradient):

    weight ← weight · (limit / expected)^rate

The losses of methods differ in scale by orders of magnitude. A rate in log space has the same meaning for all
of them, and the weight stays positive. (PDU in open-unlearning uses the additive rule, weight ← max(0, weight
+ rate · (budget − measured)).) The expected ratio extrapolates the last change to the next measurement: the
model responds with a delay, and without extrapolation the weight oscillates (Stooke et al. 2020, "Responsive
safety by PID Lagrangian methods").

While the learning rate is high, every model is worse than the final one, and when it is low, little changes.
The limit therefore decreases from the ratio measured after a quarter of the steps to the budget, which it
reaches after seven tenths (`limit_at`). In the first quarter, the weight is only decreased, and only if the
run would otherwise be ruined. All of this applies to each cycle of the learning rate (`first_cycle`).
"""

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.hooks import Hook
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.step import TrainState
from l2l_jax.train.unlearning_config import UnlearningConfig
from l2l_jax.train.validation_errors import MaskedErrors

if TYPE_CHECKING:
    from l2l_jax.train.loop import Training

logger = logging.getLogger(__name__)
LAG = 2  # steps until a measurement takes effect: the devices have finished it by then, and no step waits
# Shares of a cycle after which the weight follows the budget, and after which the limit is the budget
CONTROLLED_FROM, SETTLED_BY = 0.25, 0.7
# A forget error that grows by this factor after `SETTLED_BY` has not settled at the end of a cycle
STILL_RISING = 1.25
# Before `CONTROLLED_FROM`, the weight is decreased if the ratio exceeds this many budgets and is not falling
RUIN = 2.0
GREATEST_CHANGE = 1.5  # greatest factor (or inverse) by which the weight changes at a time
EFFECT = 0.02  # change of the logarithm of a ratio that counts as an effect of the weight
# Greatest factor by which the weight increases without an effect
GREATEST_RISE = 10.0
SMALL = 1e-6  # lower bound to which ratios are clipped


def limit_at(budget: float, first: float, progress: float) -> float:
    """Return the limit of the ratio, which follows half a cosine in log space from `first` to the budget.

    `progress` is in [0, 1]. If `first` is below the budget, the limit is the budget.
    """
    if not first > budget:
        return budget
    left = (1 + math.cos(math.pi * progress)) / 2
    return budget * min(first / budget, RUIN) ** left


def next_weight(
    weight: float, limit: float, ratio: float, before: float, rate: float, most: float = math.inf
) -> float:
    """Return weight · (limit / expected)^rate, changed by at most `GREATEST_CHANGE`, at most `most`.

    The expected ratio is ratio · ratio / before, from the newest two ratios. If it is not finite, the weight
    is decreased.
    """
    expected = ratio * ratio / max(before, SMALL)
    change = (limit / max(expected, SMALL)) ** rate if math.isfinite(expected) else 0.0
    return min(weight * min(max(change, 1 / GREATEST_CHANGE), GREATEST_CHANGE), most)


class Measured(NamedTuple):
    """Errors of a model relative to the original model, after a step with a weight of the forget term."""

    step: int
    weight: float
    retain: float
    forget: float

    def differs(self, other: "Measured") -> bool:
        """Return whether a ratio differs noticeably from another measurement; NaN always differs."""
        pairs = ((self.retain, other.retain), (self.forget, other.forget))
        return any(not abs(math.log(max(a, SMALL) / max(b, SMALL))) <= EFFECT for a, b in pairs)

    def rank(self, budget: float, settled: bool) -> tuple[bool, bool, float]:
        """Return a sort key: by forget error within the budget, by least retain error outside, NaN last.

        Models from before the limit has `settled` are chosen only if no later model is within the budget:
        early in the training of fresh weights, a blurred reconstruction has a small error but no content.
        """
        if self.retain <= budget:
            return True, settled, self.forget
        return False, False, -self.retain if math.isfinite(self.retain) else -math.inf


@dataclasses.dataclass
class _Memory:
    """State of a budget, in addition to arrays, that a resumed run needs; JSON-serializable."""

    weight: float
    first: list | None = None  # step and ratio where the limit begins
    acted: Measured | None = None  # newest measurement that has updated the weight
    effect: Measured | None = None  # measurement since which increasing the weight had no effect
    waiting: list[Measured] = dataclasses.field(default_factory=list)  # measurements still to be used
    best: Measured | None = None  # measurement of the best model
    settling: Measured | None = None  # first measurement of a cycle with the budget as its limit
    ended: int | None = None  # step after which the run ended early
    best_errors: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # errors of the best model

    @classmethod
    def load(cls, facts: dict[str, Any]) -> "_Memory":
        names = ("acted", "effect", "best", "settling")
        tuples = {name: Measured(*facts[name]) for name in names if facts.get(name)}
        return cls(**{**facts, **tuples, "waiting": [Measured(*x) for x in facts["waiting"]]})


MakeErrors = Callable[[Parallel], MaskedErrors]


class RetainBudget(Hook):
    """A hook that measures a run, adapts the weight of its forget term, and keeps its best model.

    The measurement of step k takes effect from step k + `LAG` + 1 on, regardless of interruptions, so a
    resumed run is bitwise identical. All processes read the same numbers and make the same decisions.

    Args:
      config: Config with the retain budget and the length of the run.
      make_errors: Function that returns `MaskedErrors` of the sets "retain" and "forget" for given devices.
      reference: Parameters, all parts, of the model that errors are relative to; None: the initial model.
    """

    def __init__(self, config: UnlearningConfig, make_errors: MakeErrors, reference: Params | None = None):
        assert config.retain_budget is not None, "there is a budget"
        self.budget, self._config = config.retain_budget, config
        self._make_errors, self._reference = make_errors, reference
        self._flying: deque[tuple[int, float, list[jax.Array], Params]] = deque()
        self._memory = _Memory(0.0)
        self._best: Params | None = None
        self._initial = 0.0
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self.reference_errors: dict[str, np.ndarray] = {}

    def start_from(self, training: "Training") -> None:
        """Measure the reference model before the first step."""
        objective, parallel, run = training.objective, training.parallel, training.run
        params = {**run.params, **training.frozen}
        self._scalar, self._compose, self._mesh = parallel.scalar, objective.compose, parallel.mesh
        self._errors = self._make_errors(parallel)
        rest = {part: x for part, x in params.items() if part not in objective.trained}
        self._rest = sharding.place(rest, parallel.mesh)
        reference = sharding.place(params if self._reference is None else self._reference, parallel.mesh)
        self.reference_errors = self._errors.finish(self._errors.start({**self._rest, **reference}))
        self._initial = float(np.float32(run.alpha))
        self._memory, self._best = _Memory(self._initial), None

    def after_step(self, training: "Training") -> None:
        """Log the weight and the ratios that determined it, measure the model, and set the next weight."""
        memory, step = self._memory, training.step
        weight, acted = memory.weight, memory.acted
        scalars = {"alpha": weight}
        if acted is not None:
            scalars |= {"retain_ratio": acted.retain, "forget_ratio": acted.forget}
        finite = {name: x for name, x in scalars.items() if math.isfinite(x)}
        training.metrics = {**training.metrics, **finite}
        if self._flying and self._flying[0][0] + LAG <= step:
            self._land()
        while memory.waiting and memory.waiting[0].step + LAG <= step:
            self._act(memory.waiting.pop(0))
            training.state = dataclasses.replace(training.state, alpha=self._scalar(memory.weight))
        _, end = self._config.cycle_of(step)
        if step % self._config.budget_every == 0 or step == end:
            result = training.state.result
            started = self._errors.start(self._compose(self._rest, result))
            self._flying.append((step, weight, started, self._copy(result)))
        if step == end < self._config.steps:
            self._end_cycle(step)

    @property
    def ended(self) -> int:
        """Return the number of the last step, or of the last possible step while the run continues."""
        return self._memory.ended or self._config.steps

    def _settled(self, measured: Measured) -> bool:
        """Return whether the limit had reached the budget when a model was measured."""
        start, end = self._config.cycle_of(measured.step)
        return measured.step >= start + SETTLED_BY * (end - start)

    def _end_cycle(self, step: int) -> None:
        """End the run after a cycle unless another cycle would help."""
        self._land()
        memory, best = self._memory, self._memory.best
        assert best is not None and memory.settling is not None, "the last step of a cycle is measured"
        newest = memory.waiting[-1]
        rising = newest.forget > STILL_RISING * memory.settling.forget
        if best.retain <= self.budget and self._settled(best) and not rising:
            memory.ended = step
            return
        memory.weight = max(memory.weight, self._initial)  # it may have decreased too far
        if rising:
            logger.info("Step %d: the forget error is still rising; another cycle follows.", step)
        else:
            message = "Step %d: the retain error is %.3f times the original's, not yet within the budget; "
            logger.info(message + "another cycle follows.", step, newest.retain)

    def choose(self, candidates: Mapping[float, Params]) -> Params:
        """Return the best of some models, given as trained parts by weight; used for one-shot methods."""
        for weight, params in candidates.items():
            placed = sharding.place(params, self._mesh)
            self._flying.append((1, weight, self._errors.start(self._compose(self._rest, placed)), placed))
        self._land()
        assert self._best is not None, "there are candidates"
        return self._best

    def saved(self, state: TrainState) -> tuple[Params, dict[str, Any]]:
        """Return the state for a checkpoint: the best model's trained parts, and JSON values."""
        return self.best(state), dataclasses.asdict(self._memory)

    def restore(self, best: Params, facts: dict[str, Any]) -> None:
        """Restore the state returned by `saved`."""
        self._memory = _Memory.load(facts)
        self._best = None if self._memory.best is None else best

    def best(self, state: TrainState) -> Params:
        """Return the trained parts of the best model so far, or of `state` if there is none."""
        self._land()
        return state.result if self._best is None else self._best

    def result(self) -> tuple[Measured, dict[str, np.ndarray]]:
        """Return the measurement of the best model of a finished run, and its errors `[image]` by set."""
        self._land()
        best = self._memory.best
        assert best is not None, "the last step is measured"
        return best, {name: np.array(x, np.float64) for name, x in self._memory.best_errors.items()}

    def _land(self) -> None:
        """Wait for pending measurements, and keep each model if it is the best so far."""
        memory = self._memory
        while self._flying:
            step, weight, started, params = self._flying.popleft()
            errors = self._errors.finish(started)
            means = {name: (x.mean(), self.reference_errors[name].mean()) for name, x in errors.items()}
            ratios = (float(means[name][0] / means[name][1]) for name in ("retain", "forget"))
            measured = Measured(step, weight, *ratios)
            memory.waiting.append(measured)
            settled, begun = self._settled(measured), self._config.cycle_of(step)[0]
            if settled and (memory.settling is None or memory.settling.step <= begun):
                memory.settling = measured
            rank = measured.rank(self.budget, settled)
            if memory.best is None or rank > memory.best.rank(self.budget, self._settled(memory.best)):
                memory.best, self._best = measured, params
                memory.best_errors = {name: x.tolist() for name, x in errors.items()}

    def _act(self, measured: Measured) -> None:
        """Update the weight by a measurement."""
        memory, config, ratio = self._memory, self._config, measured.retain
        before = ratio if memory.acted is None else memory.acted.retain
        memory.acted = measured
        begun, end = config.cycle_of(measured.step)
        if measured.step < begun + CONTROLLED_FROM * (end - begun):
            if ratio <= RUIN * self.budget or ratio < before:
                return
            limit = RUIN * self.budget
        else:
            if memory.first is None or memory.first[0] <= begun:
                memory.first = [measured.step, ratio]
            start, first = memory.first
            length = max(1.0, begun + SETTLED_BY * (end - begun) - start)
            limit = limit_at(self.budget, first, min(1.0, (measured.step - start) / length))
        rate, most = config.budget_rate, config.options.max_weight
        weight = next_weight(memory.weight, limit, ratio, before, rate, most)
        memory.weight = min(weight, self._bound(measured, weight))

    def _bound(self, measured: Measured, proposed: float) -> float:
        """Return an upper bound of the weight, which would otherwise grow forever without an effect."""
        memory, effect = self._memory, self._memory.effect
        if effect is None or measured.weight <= effect.weight or measured.differs(effect):
            effect = memory.effect = measured
        bound = GREATEST_RISE * effect.weight
        if proposed > bound > memory.weight:
            logger.info(
                "A larger alpha has had no effect since step %d (forget ratio %.3f): it stays at %.3g",
                *(effect.step, measured.forget, bound),
            )
        return max(bound, memory.weight)
