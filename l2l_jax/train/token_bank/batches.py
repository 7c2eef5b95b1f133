"""Training batches from a bank, and the task that takes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.data.loader import BatchIterator, TrainingBatches
from l2l_jax.methods.base import Task
from l2l_jax.models.base import Model
from l2l_jax.train.token_bank.storage import Codes


def banked_task(task: Task, model: Model, sets: tuple[str, ...]) -> Task:
    """A task whose batches hold codes for `sets`: where none holds pixels, it needs no tokenizer."""
    if not set(task.sets) <= set(sets):
        return task
    return task._replace(frozen=tuple(part for part in task.frozen if part not in model.corruption_parts))


@dataclasses.dataclass(frozen=True)
class BankBatches:
    """Like `TrainingBatches`, with uint16 codes `[row, token]` for the sets of a bank.

    Attributes:
      images: the batches of pixels; they are read only for sets that the bank does not have.
      codes: the bank, by set; "noise" takes the place of what the teacher sees for forget images.
    """

    images: TrainingBatches
    codes: Mapping[str, Codes]

    @property
    def value_range(self) -> tuple[float, float]:
        """Of the pixels."""
        return self.images.value_range

    def __iter__(self) -> "BankIterator":
        return BankIterator(self)


class BankIterator:
    """Iterates over `BankBatches`; its state is that of `BatchIterator`."""

    def __init__(self, batches: BankBatches):
        images = batches.images
        self._codes, self._batch_size = batches.codes, images.batch_size
        self._rows = np.asarray(images.rows)
        self._processes = images.batch_size // len(images.rows)
        pixels = not set(images.orders) <= set(batches.codes)
        self._pixels: BatchIterator | None = iter(images) if pixels else None
        self._taken = 0

    def __iter__(self) -> "BankIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's rows of the next global batch."""
        batch = {} if self._pixels is None else next(self._pixels)
        positions = self._taken * self._batch_size + self._rows
        self._taken += 1
        return {**batch, **{name: codes.read(positions) for name, codes in self._codes.items()}}

    def get_state(self) -> dict[str, Any]:
        """JSON-able; the same in every process."""
        return {"batches": self._taken, "processes": self._processes}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on where another iterator's `get_state` was asked for, of however many processes."""
        self._taken = state["batches"]
        if self._pixels is not None:
            self._pixels.set_state(state)

    def close(self) -> None:
        """End what reads pixels."""
        if self._pixels is not None:
            self._pixels.close()
