"""Transforms from images of any size to the square inputs of models: crop, resize, flip.

This module must not import JAX, because worker processes import it.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import pydantic
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

from l2l_jax.data.decoding import open_image

if TYPE_CHECKING:
    from jaxtyping import Float, Num

ATTEMPTS = 10  # random crops to try before taking the center crop, as in torchvision
# A JPEG is decoded at reduced size only if the crop stays larger than the result by this factor
SPARE = 3
PIXEL_TYPES = {"uint8": PixelType.U8x3, "float32": PixelType.F32x3}
Share = Annotated[float, pydantic.Field(gt=0, le=1)]
Scale = tuple[Share, Share]
Ratio = Annotated[float, pydantic.Field(gt=0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Settings of the transform to square images.

    Attributes:
      crop: Part of the image to use. "resize": the entire image, regardless of its aspect ratio; "centre":
        the largest centered square; "random": a random crop as in torchvision's RandomResizedCrop for
        training images, and the center crop for test images.
      crop_scale: Minimum and maximum fraction of the image's area for a random crop.
      crop_ratio: Minimum and maximum aspect ratio, width / height, of a random crop.
      flip: Whether to flip training images horizontally with probability 0.5.
    """

    crop: Literal["resize", "centre", "random"] = "resize"
    crop_scale: Scale = (0.2, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self):
        for name in ("crop_scale", "crop_ratio"):
            least, greatest = getattr(self, name)
            if least > greatest:
                raise ValueError(f"{name} must be (minimum, maximum), not ({least}, {greatest})")


class Box(NamedTuple):
    """A crop box in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Sample a random crop as torchvision's RandomResizedCrop does.

    The fraction of the area is uniform in `scale`, and the aspect ratio width / height is log-uniform in
    `ratio`. A crop that does not fit is sampled again, at most `ATTEMPTS` times. After that, the result is
    the largest center crop with an aspect ratio in `ratio`.
    """
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        proportion = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return center_crop(height, width, h, w)


def center_crop(height: int, width: int, h: int, w: int) -> Box:
    """Return the centered box with height h and width w."""
    return Box((height - h) // 2, (width - w) // 2, h, w)


class Transform:
    """A transform from an encoded image or an array to a square with sides of `size` pixels.

    Unless `training`, random crops are replaced by center crops and images are not flipped.
    """

    def __init__(self, config: TransformConfig, size: int, *, training: bool):
        self._config, self._size, self._training = config, size, training
        self._random = training and (config.crop == "random" or config.flip)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Output shape `(height, width, channel)`."""
        return (self._size, self._size, 3)

    def __call__(self, image: bytes | np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        """Return the square `[size, size, 3]`: float32 in [0, 1] for a float32 array, otherwise uint8.

        `image` is an encoded image or an array `[height, width, 3]`. The random choices are determined by
        `seed`, non-negative integers.

        Raises:
          ImageError: The image cannot be decoded.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))) if self._random else None
        if isinstance(image, np.ndarray):
            height, width, _ = image.shape
            square = resize(image, self._box(height, width, rng), self._size)
        else:
            opened = open_image(image)
            box = self._box(opened.height, opened.width, rng)
            shrink = max(f for f in (1, 2, 4, 8) if f == 1 or min(box[2:]) >= f * SPARE * self._size)
            pixels = opened.pixels(shrink)
            square = resize(pixels, _scaled(box, opened.height, opened.width, pixels), self._size)
        if rng is not None and self._config.flip and rng.random() < 0.5:
            square = square[:, ::-1]
        return square

    def _box(self, height: int, width: int, rng: np.random.Generator | None) -> Box:
        config = self._config
        if config.crop == "resize":
            return Box(0, 0, height, width)
        if config.crop == "random" and rng is not None:
            return random_crop(height, width, config.crop_scale, config.crop_ratio, rng)
        side = min(height, width)
        return center_crop(height, width, side, side)


def _scaled(box: Box, height: int, width: int, pixels: np.ndarray) -> Box:
    """Scale a box to an image that was decoded at reduced size, rounded to pixels."""
    if pixels.shape[:2] == (height, width):
        return box
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    top, bottom = round(box.top * down), round((box.top + box.height) * down)
    left, right = round(box.left * across), round((box.left + box.width) * across)
    return Box(top, left, bottom - top, right - left)


def resize(image: Num[np.ndarray, "height width 3"], box: Box, size: int) -> Num[np.ndarray, "size size 3"]:
    """Resize a crop of an image `[height, width, 3]` to a square with antialiased bicubic interpolation.

    The filter is that of Pillow and torchvision (Keys, a = −0.5, widened for downsampling). It does not read
    pixels outside the crop. The dtype is unchanged: uint8, or float32 in [0, 1].
    """
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[:2] == (size, size):
        return part
    kind = PIXEL_TYPES[part.dtype.name]
    source = ImageData(box.width, box.height, kind, part.tobytes())
    result = ImageData(size, size, kind)
    Resizer().resize(source, result, ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom)))
    square = np.frombuffer(result.get_buffer(), part.dtype).reshape(size, size, 3)
    return square if square.dtype == np.uint8 else np.clip(square, 0, 1)


def in_range(image: Num[np.ndarray, ...], value_range: tuple[float, float]) -> Float[np.ndarray, ...]:
    """Scale uint8 images, or float images in [0, 1], to `value_range`, float32."""
    low, high = value_range
    unit = (high - low) / (255 if image.dtype == np.uint8 else 1)
    scaled = np.multiply(image, np.float32(unit), dtype=np.float32)
    return np.add(scaled, np.float32(low), out=scaled)
