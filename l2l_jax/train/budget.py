"""A budget for what unlearning may cost: the weight of the forget term follows the retain error.

The error in the mask of retain validation images, relative to the original model's, is to end below a
budget. The weight follows by dual ascent on that constraint, in the logarithm (exponentiated gradient):

    weight ← weight · (limit / expected)^rate

Methods' losses differ in scale by orders of magnitude; a rate of the logarithm means the same to all of
them, and the weight stays positive. The additive rule, weight ← max(0, weight + rate · (budget − measured)),
is what PDU in open-unlearning does. `expected` is where the next measurement will be if the last change goes
on: the model answers late, and without looking ahead the weight swings (Stooke et al. 2020, "Responsive
safety by PID Lagrangian methods").

While the learning rate is high every model restores worse than it will at the end, and when it is low nothing
changes any more. So the limit falls from what is measured after a quarter of the steps to the budget, which
it reaches after seven tenths (`limit_at`). In the first quarter the weight stays as given; it only falls
where the run would be ruined.
"""

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.evals.intervals import Interval, bootstrap
from l2l_jax.methods.base import Task
from l2l_jax.models.base import Params
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.step import TrainState
from l2l_jax.train.validation_errors import MaskedErrors

logger = logging.getLogger(__name__)

LAG = 2
"""Steps after which a measurement acts: by then the devices have done it, and nobody waits."""

CONTROLLED_FROM = 0.25
"""Share of the steps after which the weight follows the budget."""

SETTLED_BY = 0.7
"""Share of the steps after which the limit is the budget."""

RUIN = 2.0
"""Before that the weight falls where the ratio is beyond this many budgets, and not falling by itself."""

GREATEST_CHANGE = 1.5
"""Greatest factor, or least inverse, by which the weight changes at a time."""

SMALL = 1e-6
"""Ratios count as at least that much."""


def limit_at(budget: float, first: float, progress: float) -> float:
    """What the ratio may be on the way: from `first` down to the budget, half a cosine in the logarithm.

    Args:
      budget: of the ratio at the end.
      first: the ratio where the way begins; the limit is the budget throughout if that is not greater.
      progress: share of the way, 0 to 1.
    """
    if not first > budget:
        return budget
    left = (1 + math.cos(math.pi * progress)) / 2
    return budget * min(first / budget, RUIN) ** left


def next_weight(
    weight: float, limit: float, ratio: float, before: float, rate: float, most: float = math.inf
) -> float:
    """weight · (limit / expected)^rate, changed by no more than `GREATEST_CHANGE`, at most `most`.

    A ratio that is not finite lowers the weight.

    Args:
      weight: that the model was trained with.
      limit: of the ratio.
      ratio: measured.
      before: measured the time before; expected is ratio · ratio / before.
      rate, most: of the weight.
    """
    expected = ratio * ratio / max(before, SMALL)
    change = (limit / max(expected, SMALL)) ** rate if math.isfinite(expected) else 0.0
    return min(weight * min(max(change, 1 / GREATEST_CHANGE), GREATEST_CHANGE), most)


class Measured(NamedTuple):
    """Ratios of the errors of the model after a step to the original model's.

    Attributes:
      step: steps done.
      weight: of the forget term in that step.
      retain, forget: ratios.
    """

    step: int
    weight: float
    retain: float
    forget: float

    def rank(self, budget: float) -> tuple[bool, float]:
        """Orders models: inside the budget the greatest forget error is best, outside the least retain error.

        NaN is outside, and worst.
        """
        if self.retain <= budget:
            return True, self.forget
        return False, -self.retain if math.isfinite(self.retain) else -math.inf


class Outcome(NamedTuple):
    """The model that a budgeted run ends with.

    Attributes:
      budget: what the retain ratio may be.
      step: after which step it was taken.
      retain, forget: ratios of its mean error to the original's, of images paired.
      weight: of the forget term in that step.
      images: validation images measured, of each set.
    """

    budget: float
    step: int
    retain: Interval
    forget: Interval
    weight: float
    images: dict[str, int]

    @property
    def met(self) -> bool:
        """Whether it is inside the budget."""
        return self.retain.value <= self.budget

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        facts = self._asdict() | {"met": self.met}
        return facts | {of: getattr(self, of)._asdict() for of in ("retain", "forget")}

    def __str__(self) -> str:
        ratios = (
            f"{x.value:.3f} times the original's (95 %: {x.low:.3f} to {x.high:.3f})"
            for x in (self.retain, self.forget)
        )
        return "the model after step {}: error of retain validation images {}, of forget ones {}".format(
            self.step, *ratios
        )


@dataclasses.dataclass
class _Memory:
    """What a resumed run must know besides arrays; JSON-able.

    Attributes:
      weight: of the forget term.
      first: step and ratio where the limit begins.
      acted: the newest measurement that the weight has followed.
      waiting: those that it has not.
      best: the model that is kept.
      best_errors: its errors by set.
    """

    weight: float
    first: list | None = None
    acted: Measured | None = None
    waiting: list[Measured] = dataclasses.field(default_factory=list)
    best: Measured | None = None
    best_errors: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, facts: dict[str, Any]) -> "_Memory":
        memory = cls(**facts)
        memory.acted, memory.best = (x and Measured(*x) for x in (memory.acted, memory.best))
        memory.waiting = [Measured(*x) for x in memory.waiting]
        return memory


class RetainBudget:
    """Measures a run, moves the weight of its forget term, and keeps its best model.

    The measurement of step k acts from step k + `LAG` + 1 on, wherever the run is interrupted, so that it
    repeats bit for bit. All processes decide alike: they see the same numbers.

    Args:
      budget: greatest ratio of the error of retain validation images to the original model's.
      every: steps between measurements; the last step is measured in any case.
      rate: of the weight, see above.
      steps: of the run.
      make_errors: makes the `MaskedErrors` of the sets "retain" and "forget" for devices.
      reference: the model that errors are relative to, all parts; None: the one that the run starts from.
      most: the greatest weight that the method knows.
    """

    def __init__(
        self, budget: float, *, every: int, rate: float, steps: int,
        make_errors: Callable[[Parallel], MaskedErrors], reference: Params | None = None,
        most: float = math.inf,
    ):  # fmt: skip
        self._budget, self._every, self._rate, self._steps = budget, every, rate, steps
        self._make_errors, self._reference, self._most = make_errors, reference, most
        self._flying: deque[tuple[int, float, list[jax.Array], Params]] = deque()
        self._memory = _Memory(0.0)
        self._best: Params | None = None
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def begin(
        self, parallel: Parallel, place: Callable[[Params], Params], params: Params, task: Task, alpha: float
    ) -> None:
        """Measure the reference.

        Args:
          parallel: the devices, and how the step runs on them.
          place: puts parameters on them.
          params: the model that the run starts from, all parts; placed ones are used as they are.
          task: what is trained.
          alpha: where the weight starts.
        """
        self._scalar, self._compose = parallel.scalar, task.compose
        self._errors = self._make_errors(parallel)
        self._rest = place({part: x for part, x in params.items() if part not in task.trained})
        reference = place(params if self._reference is None else self._reference)
        self._reference_errors = self._errors.finish(self._errors.start({**self._rest, **reference}))
        self._memory, self._best = _Memory(float(np.float32(alpha))), None

    def saved(self, state: TrainState) -> tuple[Params, dict[str, Any]]:
        """What a resumed run needs: the best model's trained parts, and JSON-able facts."""
        return self.best(state), dataclasses.asdict(self._memory)

    def restore(self, best: Params, facts: dict[str, Any]) -> None:
        """Go on where another run's `saved` was asked for."""
        self._memory = _Memory.load(facts)
        self._best = None if self._memory.best is None else best

    def best(self, state: TrainState) -> Params:
        """The trained parts of the best model measured so far; those of `state` before there is one."""
        self._land()
        return state.result if self._best is None else self._best

    def scalars(self) -> dict[str, float]:
        """To log with the next step: the weight that it has, and the newest ratios that it follows."""
        acted = self._memory.acted
        ratios = {} if acted is None else {"retain_ratio": acted.retain, "forget_ratio": acted.forget}
        return {"alpha": self._memory.weight, **{of: x for of, x in ratios.items() if math.isfinite(x)}}

    def after(self, step: int, state: TrainState) -> TrainState:
        """The state for the next step, with the weight that it is to have."""
        weight = self._memory.weight
        if self._flying and self._flying[0][0] + LAG <= step:
            self._land()
        while self._memory.waiting and self._memory.waiting[0].step + LAG <= step:
            self._act(self._memory.waiting.pop(0))
            state = dataclasses.replace(state, alpha=self._scalar(self._memory.weight))
        if step % self._every == 0 or step == self._steps:
            started = self._errors.start(self._compose(self._rest, state.result))
            self._flying.append((step, weight, started, self._copy(state.result)))
        return state

    def outcome(self) -> Outcome:
        """What is known of the best model of a finished run."""
        self._land()
        best = self._memory.best
        assert best is not None, "the last step is measured"
        errors = {of: np.array(x, np.float64) for of, x in self._memory.best_errors.items()}
        return Outcome(
            self._budget, best.step, self._interval("retain", errors), self._interval("forget", errors),
            best.weight, {of: len(x) for of, x in errors.items()},
        )  # fmt: skip

    def _land(self) -> None:
        """Wait for what is being measured, and keep the model if it is the best so far."""
        while self._flying:
            step, weight, started, params = self._flying.popleft()
            errors = self._errors.finish(started)
            ratios = {of: float(x.mean() / self._reference_errors[of].mean()) for of, x in errors.items()}
            measured = Measured(step, weight, ratios["retain"], ratios["forget"])
            self._memory.waiting.append(measured)
            best = self._memory.best
            if best is None or measured.rank(self._budget) > best.rank(self._budget):
                self._memory.best, self._best = measured, params
                self._memory.best_errors = {of: x.tolist() for of, x in errors.items()}

    def _act(self, measured: Measured) -> None:
        """Let the weight follow a measurement."""
        memory, ratio = self._memory, measured.retain
        before = ratio if memory.acted is None else memory.acted.retain
        memory.acted = measured
        if measured.step < CONTROLLED_FROM * self._steps:
            if ratio <= RUIN * self._budget or ratio < before:
                return
            limit = RUIN * self._budget
        else:
            memory.first = memory.first or [measured.step, ratio]
            start, first = memory.first
            way = max(1.0, SETTLED_BY * self._steps - start)
            limit = limit_at(self._budget, first, min(1.0, (measured.step - start) / way))
        memory.weight = next_weight(memory.weight, limit, ratio, before, self._rate, self._most)

    def _interval(self, of: str, errors: dict[str, np.ndarray]) -> Interval:
        now, original = errors[of], self._reference_errors[of]
        return bootstrap(lambda chosen: now[chosen].mean(-1) / original[chosen].mean(-1), len(now))
