"""A cache of codes of images and noise, computed by frozen parts such as a tokenizer before unlearning.

The same pixels give the same codes in every epoch and, if codes include draws of T, the same draws. Codes in
the workdir replace only the noise, or also the images; in the latter case, training neither reads pixels nor
loads the tokenizer. With as many views as the run has epochs, and as many noise images as it uses, the run is
numerically identical to one without a cache.
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
NOTE_EVERY = 16  # number of global batches after which the progress of filling the cache is stored
DONE = "batches"


class Codes:
    """Codes of a set, `[view, image, …]`, in a memory-mapped file.

    Position p of a set's stream holds the image at position p of `order`, in the view of its epoch. After all
    views, the first view is used again.
    """

    def __init__(self, path: pathlib.Path, order: EpochOrder, views: int, code: jax.ShapeDtypeStruct):
        self.path, self.order, self.views = path, order, views
        self.shape, self.dtype = (views, order.count, *code.shape), code.dtype
        self.positions = views * order.count

    def create(self) -> None:
        """Create the file, filled with zeros."""
        np.lib.format.open_memmap(self.path, "w+", self.dtype, self.shape).flush()

    def write(self, positions: np.ndarray, codes: np.ndarray) -> None:
        """Write the codes `[position, …]` of the first pass over all views; ignore later positions."""
        first = positions < self.positions
        views, indices = self.order(positions[first])
        file = np.lib.format.open_memmap(self.path, "r+")
        file[views, indices] = codes[first]
        file.flush()

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Read the codes `[position, …]` at the given positions."""
        epochs, indices = self.order(positions)
        return self._file[epochs % self.views, indices]

    @functools.cached_property
    def _file(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")


def cached_objective(objective: Objective, model: Model, sets: tuple[str, ...]) -> Objective:
    """Return an objective for batches of codes of `sets`; `precompute_parts` are needed only for pixels."""
    if not set(objective.sets) <= set(sets):
        return objective
    frozen = tuple(part for part in objective.frozen if part not in model.precompute_parts)
    return dataclasses.replace(objective, frozen=frozen)


@dataclasses.dataclass(frozen=True)
class CachedBatches:
    """Batches like `TrainingBatches`, with codes `[row, …]` for the cached sets.

    Pixels are read only for sets without codes. "noise" replaces the teacher's noise for forget images.
    """

    images: TrainingBatches
    codes: Mapping[str, Codes]

    @property
    def value_range(self) -> tuple[float, float]:
        """Return the range of the pixels."""
        return self.images.value_range

    def __iter__(self) -> "CachedIterator":
        return CachedIterator(self)


class CachedIterator:
    """An iterator over `CachedBatches`, with the same state as `BatchIterator`."""

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
        """Return the JSON-serializable state, which is the same in every process."""
        return {"batches": self._taken, "processes": self._processes}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `get_state` of an iterator with any number of processes."""
        self._taken = state["batches"]
        if self._pixels is not None:
            self._pixels.set_state(state)

    def close(self) -> None:
        """Stop the threads and processes that read pixels."""
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
    """Compute the codes that are missing in `folder`, which all hosts share, and return batches of codes.

    View v of an image is its crop in epoch v of `images`. Noise image i is the one that a run without a cache
    would use at this position in the stream, with the statistics of its batch and the seed of the training
    steps. Draws of T are those of the first step that uses an image.

    Raises:
      Interrupted: A signal arrived in some process; computed codes are stored.
      UserError: Images cannot be read.
    """
    assert model.code is not None  # ensured by the config's validation
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
        program = jax.jit(compute, static_argnames="sets")
        placed = jax.device_put(tokenizer, NamedSharding(mesh, PartitionSpec()))
        _fill(batches, cache, done, functools.partial(program, placed), mesh)
    return batches


def _begun(cache: ResultCache, codes: Mapping[str, Codes]) -> int:
    """Return the number of finished batches; create the files before the first batch."""
    done = cache.get(DONE) or 0
    if not done:
        for one in codes.values():
            one.create()
    return done


def _precompute(tokenizer, batch, number, sets, *, model, noise, seed):
    """Return the codes of `sets` of batch `number`, as the training step with this number computes them."""
    rng = jax.random.fold_in(jax.random.key(seed), number)
    pixels, (retain, forget) = scaled_pixels(batch, model.value_range), corruption_keys(rng)
    keys = {"retain": retain, "forget": forget, "noise": forget}
    if "noise" in sets:
        span = model.value_range
        pixels["noise"] = batch_noise(pixels["retain"], pixels["forget"], rng, kind=noise, value_range=span)
    return {name: model.precompute(tokenizer, pixels[name], keys[name]) for name in sets}


def _total(batches: CachedBatches) -> int:
    return max(-(-one.positions // batches.images.batch_size) for one in batches.codes.values())


def _fill(batches: CachedBatches, cache: ResultCache, done: int, program: Any, mesh: Mesh) -> None:
    """Compute the batches from `done` on; each is written while the devices compute the next one."""
    total, size = _total(batches), batches.images.batch_size
    with (
        stop_request() as stop,
        contextlib.closing(iter(batches.images)) as iterator,
        Progress("token cache", total, done, "batch") as progress,
    ):
        iterator.set_state({**iterator.get_state(), "batches": done})

        def start(number: int) -> Any:
            sets = tuple(name for name, one in batches.codes.items() if number * size < one.positions)
            return program(sharding.shard_batch(next(iterator), mesh), number, sets)

        ahead = start(done)
        for number in range(done, total):
            current, ahead = ahead, start(number + 1) if number + 1 < total else None
            host = to_host(current)
            signal_number = stop.agreed()
            if is_primary():
                for name, codes in host.items():
                    batches.codes[name].write(number * size + np.arange(size), codes)
            progress.update()
            if signal_number is not None or (number + 1) % NOTE_EVERY == 0 or number + 1 == total:
                on_primary(functools.partial(cache.put, DONE, number + 1))
            if signal_number is not None and number + 1 < total:
                raise Interrupted(number + 1, signal_number)
