"""Codes computed once: what frozen parts, such as a tokenizer, make of images and noise before unlearning.

The same pixels give the same codes in every epoch; where codes hold draws of T, the same draws, too. Codes
kept in the workdir take the place of the noise alone, or of the images as well, after which training reads no
pixels and holds no tokenizer. With as many views as the run has epochs, and as many noise images as it shows,
the run is that without a cache, number for number.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2l_jax.data.loader import BatchIterator, EpochOrder, TrainingBatches
from l2l_jax.errors import Interrupted
from l2l_jax.losses import batch_noise, corruption_keys
from l2l_jax.methods.base import Objective
from l2l_jax.models.base import Model, Params
from l2l_jax.train import sharding
from l2l_jax.train.step import scaled_pixels
from l2l_jax.train.unlearning_config import UnlearningConfig
from l2l_jax.utils.io import ResultCache, tree_hash
from l2l_jax.utils.multihost import from_primary, is_primary, on_primary, to_host
from l2l_jax.utils.progress import Progress
from l2l_jax.utils.stopping import stop_request

logger = logging.getLogger(__name__)
NOTE_EVERY = 16  # global batches after which it is noted how far the cache is filled
DONE = "batches"


class Codes:
    """Codes of a set, `[view, image, …]`, in a file that is read and written in place.

    Position p of a set's stream shows the image that `order` has there, in the view of its epoch; when all
    views have been shown, the first one comes again.
    """

    def __init__(self, path: pathlib.Path, order: EpochOrder, views: int, code: jax.ShapeDtypeStruct):
        self.path, self.order, self.views = path, order, views
        self.shape, self.dtype = (views, order.count, *code.shape), code.dtype
        self.positions = views * order.count

    def create(self) -> None:
        """Write the file with zeros."""
        np.lib.format.open_memmap(self.path, "w+", self.dtype, self.shape).flush()

    def write(self, positions: np.ndarray, codes: np.ndarray) -> None:
        """Write the codes `[position, …]` of the first round; leave out those of later ones."""
        first = positions < self.positions
        views, indices = self.order(positions[first])
        file = np.lib.format.open_memmap(self.path, "r+")
        file[views, indices] = codes[first]
        file.flush()

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Read codes `[position, …]`."""
        epochs, indices = self.order(positions)
        return self._file[epochs % self.views, indices]

    @functools.cached_property
    def _file(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")


def cached_objective(objective: Objective, model: Model, sets: tuple[str, ...]) -> Objective:
    """Return an objective for batches of codes of `sets`: without pixels it needs no `precompute_parts`."""
    if not set(objective.sets) <= set(sets):
        return objective
    frozen = tuple(part for part in objective.frozen if part not in model.precompute_parts)
    return dataclasses.replace(objective, frozen=frozen)


@dataclasses.dataclass(frozen=True)
class CachedBatches:
    """Like `TrainingBatches`, with codes `[row, …]` for the cached sets.

    Pixels are read only for sets without codes. "noise" replaces what the teacher is shown for forget images.
    """

    images: TrainingBatches
    codes: Mapping[str, Codes]

    @property
    def value_range(self) -> tuple[float, float]:
        """Range of the pixels."""
        return self.images.value_range

    def __iter__(self) -> "CachedIterator":
        return CachedIterator(self)


class CachedIterator:
    """Iterates over `CachedBatches`; its state is that of `BatchIterator`."""

    def __init__(self, batches: CachedBatches):
        images = batches.images
        self._codes, self._batch_size = batches.codes, images.batch_size
        self._rows = np.asarray(images.rows)
        self._processes = images.batch_size // len(images.rows)
        pixels = not set(images.orders) <= set(batches.codes)
        self._pixels: BatchIterator | None = iter(images) if pixels else None
        self._taken = 0

    def __next__(self) -> dict[str, np.ndarray]:
        """Return this process's rows of the next global batch."""
        batch = {} if self._pixels is None else next(self._pixels)
        positions = self._taken * self._batch_size + self._rows
        self._taken += 1
        return {**batch, **{name: codes.read(positions) for name, codes in self._codes.items()}}

    def get_state(self) -> dict[str, Any]:
        """Return the JSON-able state, which is the same in every process."""
        return {"batches": self._taken, "processes": self._processes}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from another iterator's `get_state`, of however many processes."""
        self._taken = state["batches"]
        if self._pixels is not None:
            self._pixels.set_state(state)

    def close(self) -> None:
        """End threads and processes that read pixels."""
        if self._pixels is not None:
            self._pixels.close()


def open_token_cache(
    folder: pathlib.Path,
    config: UnlearningConfig,
    model: Model,
    params: Params,
    images: TrainingBatches,
    *,
    seed: int,
    mesh: Mesh,
) -> CachedBatches:
    """Compute the codes that are missing in `folder`, which all hosts share, and return batches of them.

    View v of an image is the crop that it has in epoch v of `images`. Noise image i is the one that a run
    without a cache would show at its place in the stream, with the statistics of its batch and the seed of
    the training steps. Draws of T are those that the step of an image makes the first time.

    Raises:
      Interrupted: A signal arrived in some process; what is computed is kept.
      UserError: Images cannot be read.
    """
    assert model.code is not None  # the config was checked
    noise = config.options.noise  # type: ignore[attr-defined]  # methods with a cache have noise
    views = config.token_bank
    orders = {name: (order, views) for name, order in images.orders.items() if views}
    if model.codes_hold_draws:
        orders["noise"] = orders["forget"]
    else:
        noise_seed = int(np.random.SeedSequence((seed, 2)).generate_state(1)[0])
        orders["noise"] = EpochOrder(config.noise_bank, noise_seed), 1
    codes = {name: Codes(folder / f"{name}.npy", *order, model.code) for name, order in orders.items()}
    tokenizer = {part: params[part] for part in model.precompute_parts}
    key = {
        "shapes": {name: list(one.shape) for name, one in codes.items()},
        "orders": {name: order.seed for name, order in images.orders.items()},
        "batch_size": images.batch_size,
        "noise": noise,
        "seed": seed,
        "tokenizer": tree_hash(tokenizer),
    }
    cache = ResultCache(folder, key)
    done, batches = from_primary(lambda: _begun(cache, codes)), CachedBatches(images, codes)
    if done < _total(batches):
        counts = ", ".join(f"{one.positions:,} codes of {name} images" for name, one in codes.items())
        logger.info("Token cache: %s", counts)
        compute = functools.partial(_precompute, model=model, noise=noise, seed=seed)
        program = jax.jit(compute, static_argnames="wanted")
        placed = jax.device_put(tokenizer, NamedSharding(mesh, PartitionSpec()))
        _fill(batches, cache, done, functools.partial(program, placed), mesh)
    return batches


def _begun(cache: ResultCache, codes: Mapping[str, Codes]) -> int:
    """Return the number of batches that are computed; create the files before the first one."""
    done = cache.get(DONE) or 0
    if not done:
        for one in codes.values():
            one.create()
    return done


def _precompute(tokenizer, batch, number, wanted, *, model, noise, seed):
    """Return codes of the `wanted` sets of batch `number`, as that training step computes them."""
    rng = jax.random.fold_in(jax.random.key(seed), number)
    pixels, (retain, forget) = scaled_pixels(batch, model.value_range), corruption_keys(rng)
    keys = {"retain": retain, "forget": forget, "noise": forget}
    if "noise" in wanted:
        span = model.value_range
        pixels["noise"] = batch_noise(pixels["retain"], pixels["forget"], rng, kind=noise, value_range=span)
    return {name: model.precompute(tokenizer, pixels[name], keys[name]) for name in wanted}


def _total(batches: CachedBatches) -> int:
    return max(-(-one.positions // batches.images.batch_size) for one in batches.codes.values())


def _fill(batches: CachedBatches, cache: ResultCache, done: int, program: Any, mesh: Mesh) -> None:
    """Compute the batches from `done` on; each is written while the devices work on the next one."""
    total, size = _total(batches), batches.images.batch_size
    with (
        stop_request() as stop,
        contextlib.closing(iter(batches.images)) as iterator,
        Progress("token cache", total, done, "batch") as progress,
    ):
        iterator.set_state({**iterator.get_state(), "batches": done})

        def start(number: int) -> Any:
            wanted = tuple(name for name, one in batches.codes.items() if number * size < one.positions)
            return program(sharding.shard_batch(next(iterator), mesh), number, wanted)

        ahead = start(done)
        for number in range(done, total):
            current, ahead = ahead, start(number + 1) if number + 1 < total else None
            host = to_host(current)
            signal_number = stop.agreed()
            if is_primary():
                for name, found in host.items():
                    batches.codes[name].write(number * size + np.arange(size), found)
            progress.update()
            if signal_number is not None or (number + 1) % NOTE_EVERY == 0 or number + 1 == total:
                on_primary(functools.partial(cache.put, DONE, number + 1))
            if signal_number is not None and number + 1 < total:
                raise Interrupted(number + 1, signal_number)
