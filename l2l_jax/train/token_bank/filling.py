"""The first pass: tokenise views and noise, resuming from what is there."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2l_jax.config import UnlearningConfig
from l2l_jax.data.loader import EpochOrder, TrainingBatches
from l2l_jax.errors import Interrupted
from l2l_jax.losses import batch_noise
from l2l_jax.models.base import Model, Params
from l2l_jax.train import sharding
from l2l_jax.train.step import scaled_pixels
from l2l_jax.train.stopping import stop_request
from l2l_jax.train.token_bank.batches import BankBatches
from l2l_jax.train.token_bank.storage import Codes, Ledger
from l2l_jax.utils.multihost import from_primary, is_primary, on_primary, to_host
from l2l_jax.utils.progress import Progress

logger = logging.getLogger(__name__)

NOTE_EVERY = 16
"""Global batches after which it is noted down how far the bank is filled."""


def open_bank(
    folder: pathlib.Path,
    config: UnlearningConfig,
    model: Model,
    params: Params,
    images: TrainingBatches,
    *,
    seed: int,
    mesh: Mesh,
) -> BankBatches:
    """The bank in `folder`, computed as far as it is not there.

    View v of an image is the crop that it has in epoch v of `images`. Noise image i is the one that a run
    without a bank would show at its place in the stream: its statistics are those of its batch. A bank of
    another model, other images or another seed is replaced.

    Args:
      folder: of the bank, on storage that all hosts share.
      config: says how many views and noise images.
      model, params: the original model.
      images: the training batches of pixels.
      seed: that of the training steps.
      mesh: the devices; a batch is split over all of them.

    Raises:
      Interrupted: SIGTERM or SIGINT arrived in some process; what is computed is noted down.
      UserError: images cannot be read.
    """
    codes = {}
    if config.token_bank:
        codes = {
            name: Codes(folder / f"{name}.npy", order, config.token_bank, model.tokens)
            for name, order in images.orders.items()
        }
    order = EpochOrder(config.noise_bank, int(np.random.SeedSequence((seed, 2)).generate_state(1)[0]))
    codes["noise"] = Codes(folder / "noise.npy", order, 1, model.tokens)
    frozen = {part: params[part] for part in model.corruption_parts}
    content = _content(config, images, codes, frozen, seed)
    total = max(-(-one.positions // images.batch_size) for one in codes.values())
    ledger = Ledger(folder)
    done = from_primary(lambda: ledger.batches(content))
    if not done:
        on_primary(lambda: _create(folder, codes))
    if done < total:
        filling = _Filling(model, config, seed, frozen, mesh, codes, images)
        _fill(filling, ledger, content, done, total)
    return BankBatches(images, codes)


def _content(
    config: UnlearningConfig, images: TrainingBatches, codes: dict[str, Codes], frozen: Params, seed: int
) -> dict[str, Any]:
    """What decides on the codes; equal contents make equal banks."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(frozen):
        digest.update(np.ascontiguousarray(leaf).data)
    return {
        "shapes": {name: list(one.shape) for name, one in codes.items()},
        "orders": {name: order.seed for name, order in images.orders.items()},
        "batch_size": images.batch_size,
        "noise": config.noise,
        "seed": seed,
        "tokenizer": digest.hexdigest(),
    }


def _create(folder: pathlib.Path, codes: dict[str, Codes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for one in codes.values():
        one.create()


@dataclasses.dataclass(frozen=True)
class _Filling:
    """How one global batch of a bank is computed."""

    model: Model
    config: UnlearningConfig
    seed: int
    frozen: Params
    mesh: Mesh
    codes: dict[str, Codes]
    images: TrainingBatches

    def positions(self, number: int) -> np.ndarray:
        """The places of a global batch in the stream of every set."""
        return number * self.images.batch_size + np.arange(self.images.batch_size)

    def wanted(self, number: int) -> tuple[str, ...]:
        """The sets that still lack codes at a batch."""
        first = number * self.images.batch_size
        return tuple(name for name, one in self.codes.items() if first < one.positions)

    @functools.cached_property
    def placed(self) -> Params:
        """The tokenizer, whole on every device."""
        return jax.device_put(self.frozen, NamedSharding(self.mesh, PartitionSpec()))

    @functools.cached_property
    def compiled(self) -> Any:
        """`(tokenizer, images by set, number of the batch, sets) -> codes by set`."""
        return jax.jit(self._tokenised, static_argnums=3)

    def _tokenised(
        self, frozen: Params, batch: dict[str, jax.Array], number: jax.Array, wanted: Sequence[str]
    ) -> dict[str, jax.Array]:
        rng = jax.random.fold_in(jax.random.key(self.seed), number)  # as in step `number` of the training
        pixels = scaled_pixels(batch, self.model.value_range)
        if "noise" in wanted:
            pixels["noise"] = batch_noise(
                pixels["retain"], pixels["forget"], rng, kind=self.config.noise,
                value_range=self.model.value_range,
            )  # fmt: skip
        return {name: self.model.tokenize(frozen, pixels[name]) for name in wanted}


def _fill(filling: _Filling, ledger: Ledger, content: dict[str, Any], done: int, total: int) -> None:
    """Compute the batches from `done` on; each is written while the devices work on the next one."""
    config = filling.config
    title = "token bank" if config.token_bank else "noise bank"
    logger.info(
        "%s: %d noise images and %d views of the training images",
        title.capitalize(), config.noise_bank, config.token_bank,
    )  # fmt: skip
    with (
        stop_request() as stop,
        contextlib.closing(iter(filling.images)) as iterator,
        Progress(title, total, done, "batch") as progress,
    ):
        iterator.set_state({**iterator.get_state(), "batches": done})
        for number, codes in _computed(filling, iterator, done, total):
            host = to_host(codes)
            signal_number = stop.agreed()
            if is_primary():
                for name, found in host.items():
                    filling.codes[name].write(filling.positions(number), found)
            progress.update()
            if signal_number is not None or (number + 1) % NOTE_EVERY == 0 or number + 1 == total:
                on_primary(functools.partial(ledger.note, content, number + 1))
            if signal_number is not None and number + 1 < total:
                raise Interrupted(number + 1, signal_number)


def _computed(filling: _Filling, iterator: Any, done: int, total: int) -> Iterator[tuple[int, Any]]:
    """`(number, codes by set)` of every batch, each handed out after the next one has been started."""
    started: tuple[int, Any] | None = None
    for number in range(done, total):
        batch = sharding.shard_batch(next(iterator), filling.mesh)
        codes = filling.compiled(filling.placed, batch, number, filling.wanted(number))
        if started is not None:
            yield started
        started = number, codes
    if started is not None:
        yield started
