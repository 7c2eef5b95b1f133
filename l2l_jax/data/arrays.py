"""Array sources: bundled digits and Fashion-MNIST, IDX and NumPy files, noise and generated images.

This module must not import JAX, because worker processes import it.
"""

import functools
import gzip
import hashlib
import io
import lzma
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from safetensors.numpy import load_file

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.files import find
from l2l_jax.data.records import ArraySource, Record, Source, SplitName, Subset, hold_out
from l2l_jax.errors import UserError

# Scans (counts from 0 to 16), labels, and a flag for test images. This is a copy because scikit-learn takes a
# second to import and other versions may split the images differently.
DIGITS = pathlib.Path(__file__).with_name("digits.safetensors")
# The first 500 training and 200 test images of each class, written by tools/fashion_subset.py
FASHION = epath.Path(__file__).parent / "fashion"

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)

FASHION_SHA256 = {
    "train": "3e4733ae8450a2837c1f62ea9946542fde2197204feb158e5b790257ac34143a",
    "test": "8e8b02fc2db0ff9ed2d481ff30f8bd7cc5c88205cb131d7f4a0c19448f6957c9",
}
"""SHA-256 digests of the pixels followed by the labels."""

IDX_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
IDX_ENDINGS = {"images": "idx3-ubyte", "labels": "idx1-ubyte"}
UNPACK: dict[str, Callable[..., Any]] = {"": lambda file: file, ".gz": gzip.open, ".xz": lzma.open}
IDX_WANTED = "a folder with train-images-idx3-ubyte[.gz] and the three other files of MNIST"
NPZ_WANTED = "a .npz file with images [image, height, width, 1 or 3] and labels [image]"
# Range of the exponents a and b of noise with amplitude 1 / (|fx|^a + |fy|^b)
EXPONENTS = (0.5, 3.5)


@functools.lru_cache(maxsize=8)
def open_digits(split: SplitName, image_size: int) -> ArraySource:
    """Open the 1,797 handwritten digits of scikit-learn's `load_digits` (Alpaydin & Kaynak 1998, UCI).

    The real 8×8 scans are upsampled bicubically and repeated over 3 channels. One image in four of every
    class, always the same ones, is a test image.
    """
    digits = load_file(DIGITS)
    indices = np.flatnonzero(digits["test"] == (split == "test"))
    scans, size = (digits["scans"][indices] / 16).astype(np.float32), (image_size, image_size)
    resized = [Image.fromarray(scan).resize(size, Image.Resampling.BICUBIC) for scan in scans]
    stacked = np.stack([np.asarray(image) for image in resized])
    images = np.repeat(np.clip(stacked, 0, 1)[..., None], 3, axis=-1)
    images.flags.writeable = False  # the cached array is shared by all runs
    return ArraySource(images, digits["labels"][indices], "0123456789", "digits", indices)


@functools.cache
def open_fashion(split: SplitName) -> ArraySource:
    """Open the training or test images of the bundled subset of Fashion-MNIST."""
    images, labels = read_idx_split(FASHION, split)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != FASHION_SHA256[split]:
        raise UserError(f"The {split} images in {FASHION} are not those of this package; reinstall it.")
    return ArraySource(images, labels, FASHION_CLASSES, f"fashion/{split}")


def open_idx(config: SourceConfig, split: SplitName) -> ArraySource:
    """Open the images of a split in a folder of IDX files; class names are the label numbers."""
    folder = find(config, IDX_WANTED, folder=True)
    images, labels = read_idx_split(folder, split)
    classes = 1 + max(int(x.max(initial=0)) for x in (labels, _read_idx(folder, "train", "labels")[1]))
    return ArraySource(images, labels, [str(number) for number in range(classes)], split)


def read_idx_split(folder: epath.Path, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Read the images `[image, height, width]` and labels `[image]` of a split, both uint8."""
    (path, images), (label_path, labels) = (_read_idx(folder, split, kind) for kind in IDX_ENDINGS)
    if len(images) != len(labels):
        raise UserError(
            f"{path} holds {len(images)} images, but {label_path.name} holds {len(labels)} labels; "
            "expected equally many."
        )
    if not images.size:
        raise UserError(f"{path} holds no pixels: its dimensions are {images.shape}.")
    return images, labels


def _read_idx(folder: epath.Path, split: SplitName, kind: str) -> tuple[epath.Path, np.ndarray]:
    """Read an array of bytes, "images" or "labels"; decompress it according to the suffix (.gz or .xz)."""
    prefixes, ending = IDX_PREFIXES[split], IDX_ENDINGS[kind]
    names = [f"{prefix}-{kind}{mark}{ending}{x}" for prefix in prefixes for mark in "-." for x in UNPACK]
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder} has no file {prefixes[0]}-{kind}-{ending}, with or without .gz.")
    dimensions = int(ending[3])
    length, expected = 4 + 4 * dimensions, 8 * 256 + dimensions
    packed = io.BytesIO(path.read_bytes())
    try:
        with UNPACK[path.suffix if path.suffix in UNPACK else ""](packed) as file:
            header = file.read(length)
            magic = int.from_bytes(header[:4])
            if magic != expected or len(header) < length:
                raise UserError(
                    f"{path} starts with the magic number {magic}, but an IDX file with {dimensions} "
                    f"dimension{'s' * (dimensions > 1)} of bytes starts with {expected}."
                )
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
            content = bytearray()
            while len(content) <= math.prod(shape) and (part := file.read(2**20)):
                content += part  # stop at the announced size: a few bytes can unpack to gigabytes
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} cannot be decompressed ({reason}); fetch or copy it again.") from None
    if len(content) != math.prod(shape):
        held = str(len(content)) if len(content) < math.prod(shape) else "more"
        raise UserError(
            f"{path} has {held} bytes after its header, which announces {' × '.join(map(str, shape))}; "
            "fetch or copy it again."
        )
    return path, np.frombuffer(content, np.uint8).reshape(shape)


def open_npz(config: SourceConfig, split: SplitName) -> Subset:
    """Open the images of a split in a NumPy file.

    The file holds "images", "labels" (class names or numbers) and optionally "test", which is true for test
    images. Without "test", the fraction `config.test_fraction` of each class is held out.
    """
    path = find(config, NPZ_WANTED, folder=False)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {pathlib.PurePath(name).stem for name in archive.namelist()}
        with np.load(path) as file:
            arrays = {name: file[name] for name in names & {"images", "labels", "test"}}
    except Exception as error:  # damaged archives raise exceptions of many types
        raise UserError(
            f"{config.where}.path={path} cannot be read ({error}); expected {NPZ_WANTED}."
        ) from None
    _check_arrays(arrays, f"{config.where}.path={path}")
    stored = arrays["labels"]
    stored = np.char.decode(stored, "utf-8", "replace") if stored.dtype.kind == "S" else stored.astype(str)
    classes, labels = np.unique(stored, return_inverse=True)
    source = ArraySource(arrays["images"], labels, classes.tolist())
    if "test" in arrays:
        return Subset(source, np.flatnonzero(np.asarray(arrays["test"], bool) == (split == "test")))
    return Subset(source, hold_out(labels, config.test_fraction, held=split == "test"))


def _check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise a UserError if an array of a NumPy file is missing or invalid."""
    if missing := {"images", "labels"} - set(arrays):
        raise UserError(f"{where} has no array {min(missing)!r}; expected {NPZ_WANTED}.")
    images = arrays["images"]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"{where}: images are {images.dtype} {list(images.shape)}; expected uint8, or float32 in [0, 1], "
            "[image, height, width, 1 or 3]."
        )
    for name in ("labels", "test"):
        if name in arrays and arrays[name].shape != (len(images),):
            shape = arrays[name].shape
            raise UserError(f"{where}: {name} has shape {shape}, but there are {len(images)} images.")
    labels, test = arrays["labels"], arrays.get("test", np.False_)
    if not images.size:
        raise UserError(f"{where} holds no pixels: images are {list(images.shape)}.")
    if labels.dtype.kind not in "iufbUS":
        raise UserError(f"{where}: labels are {labels.dtype}; expected names or numbers.")
    if not np.isin(test, (0, 1)).all():
        raise UserError(f"{where}: test is {test.dtype}; expected true for test images, or false.")
    if images.dtype == np.float32 and not np.all((images >= 0) & (images <= 1)):  # also false for NaN
        raise UserError(f"{where}: float images must be in [0, 1].")


class NoiseImages(Source):
    """Color noise with a spectrum like that of photographs, which decreases with frequency.

    These are the "spectrum" images of "Learning to See by Looking at Noise" (Baradad et al., NeurIPS 2021),
    each rescaled to [0, 1]. An image depends only on the seed and its index.
    """

    class_names = ("noise",)

    def __init__(self, count: int, size: int, seed: int):
        self._size, self._seed, self.labels = size, seed, np.zeros(count, int)

    def __getitem__(self, index: int) -> Record:
        image = spectrum_noise(np.random.default_rng([self._seed, index]), self._size)
        return {"image": image, "label": 0, "name": f"noise/{index}"}


def spectrum_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Generate an image `[size, size, 3]` of `NoiseImages`, float32."""
    a, b = rng.uniform(*EXPONENTS, 2)
    frequency = np.abs(np.fft.fftfreq(size)) * size
    with np.errstate(divide="ignore"):
        amplitude = 1 / (frequency[None, :] ** a + frequency[:, None] ** b)
    amplitude[0, 0] = 0
    white = np.fft.fft2(rng.standard_normal((3, size, size)))
    noise = np.fft.ifft2(white * amplitude).real
    low, high = noise.min(), noise.max()
    return np.moveaxis((noise - low) / (high - low), 0, -1).astype(np.float32)


class PrototypeImages(Source):
    """Interpolations between two stored prototypes of a class: `count` images, balanced over the classes.

    The file at `path` holds "images" `[prototype, height, width, 3]`, uint8, and the names of their classes,
    "labels".

    Raises:
      UserError: The file cannot be read, or lacks a class.
    """

    def __init__(self, path: str, classes: Sequence[str], count: int, seed: int):
        try:
            with np.load(path) as file:
                images, labels = file["images"], file["labels"]
        except Exception as error:  # damaged archives raise exceptions of many types
            raise UserError(f"config.data.prototypes={path} cannot be read ({error}).") from None
        if missing := set(classes) - set(labels.tolist()):
            raise UserError(
                f"config.data.prototypes={path} has no prototype of the class {min(missing)!r}: it was "
                "created from other images; name another file."
            )
        self.class_names, self._seed = list(classes), seed
        self._prototypes = [images[labels == name] for name in classes]
        self.labels = np.arange(count) % len(classes)

    def __getitem__(self, index: int) -> Record:
        label, rng = int(self.labels[index]), np.random.default_rng([self._seed, index])
        own = self._prototypes[label]
        first, second = own[rng.integers(len(own), size=2)] / np.float32(255)
        share = rng.random(dtype=np.float32)
        image = share * first + (1 - share) * second
        return {"image": image, "label": label, "name": f"prototypes/{index}"}

    def key(self, index: int) -> bytes:
        """Return the pixels of an image, because the file may be replaced."""
        return self[index]["image"].tobytes()  # type: ignore[union-attr]


class GeneratedImages(Source):
    """The first images of a NumPy file `[image, height, width, channel]`, uint8; pixels are not pickled."""

    class_names = ("generated",)

    def __init__(self, path: pathlib.Path, count: int):
        self._path, self.labels = path, np.zeros(count, int)

    @functools.cached_property
    def _images(self) -> np.ndarray:
        return np.load(self._path, mmap_mode="r")

    def __getstate__(self):
        return {"_path": self._path, "labels": self.labels}  # workers map the file themselves

    def __getitem__(self, index: int) -> Record:
        image = self._images[index].astype(np.float32) / np.float32(255)
        return {"image": image, "label": 0, "name": f"generated/{index}"}
