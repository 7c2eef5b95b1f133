"""Checkpoints of a training stage with Orbax: training state and the place in the data."""

import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from l2l_jax.errors import UserError
from l2l_jax.training.step import TrainState

logger = logging.getLogger(__name__)

KEPT = 2
"""How many of the newest checkpoints stay on disk; an older one steps in for a damaged newest."""


class Checkpointer:
    """Saves and restores `(TrainState, iterator state)` under `folder/<step>`.

    Saving is asynchronous and atomic: a folder that bears a step number is complete unless the
    disk damaged it later.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: TrainState, iterator_state: dict[str, Any]) -> None:
        """Start saving; `state` may be donated as soon as this returns."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(iterator_state)
        )
        self._manager.save(step, args=items)

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest readable checkpoint, or None where nothing was saved.

        A checkpoint that cannot be read is named in the log, renamed to `<step>.damaged` and passed
        over.

        Args:
          like: a state of the same structure and shardings.

        Raises:
          UserError: there are checkpoints, and none can be read.
        """
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(step, args=items)
            except (ValueError, KeyError, TypeError, OSError) as error:
                if isinstance(error, PermissionError):
                    raise
                self._set_aside(step, error)
            else:
                return restored.state, restored.data
        if steps:
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read (steps "
                f"{', '.join(map(str, steps))}). Delete that folder to start this stage again."
            )
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self.folder / f"{step}.damaged"
        (self.folder / str(step)).rename(damaged)
        self._manager.reload()
        reason = " ".join(str(error).split())[:200]
        logger.warning(
            "The checkpoint of step %d is damaged and passed over; it is now %s. (%s: %s)",
            step, damaged, type(error).__name__, reason,
        )  # fmt: skip

    def wait(self) -> None:
        """Block until what is being saved lies on the disk; raises what went wrong."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and stop the background threads."""
        self._manager.close()
