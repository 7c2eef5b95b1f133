"""Encoded images to RGB pixels: JPEG by libjpeg-turbo (simplejpeg), everything else by Pillow.

Nothing here loads JAX: worker processes import this module.
"""

import abc
import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)
"""Larger images are refused unread, as Pillow does: their pixels might fill the memory."""

ORIENTATION = 0x0112
"""EXIF tag of how the camera was held; from 5 on width and height change places."""


class ImageError(Exception):
    """A file that holds no image that can be decoded; the message says why."""


class OpenImage(abc.ABC):
    """An image whose size is known and whose pixels are not decoded yet.

    Attributes:
      height, width: as it is to be seen, after EXIF orientation.
    """

    height: int
    width: int

    @abc.abstractmethod
    def pixels(self, shrink: int = 1) -> np.ndarray:
        """The pixels, uint8 `[height, width, 3]`.

        Args:
          shrink: 1, 2, 4 or 8. A JPEG may be returned smaller by up to this factor, which saves most
            of its decoding: libjpeg-turbo then leaves out the high frequencies of each block.

        Raises:
          ImageError: the file is damaged.
        """


def open_image(encoded: bytes) -> OpenImage:
    """Read the head of an encoded image.

    Greyscale, CMYK, palette and 16-bit images become 8-bit RGB; transparent pixels lie on white; the
    EXIF orientation is applied; of an animation the first frame is taken. The name of the file does not
    matter.

    Raises:
      ImageError: nothing that can be decoded, or more than `MAX_PIXELS` pixels.
    """
    if not encoded:
        raise ImageError("the file is empty")
    if encoded.startswith(b"\xff\xd8\xff") and not _has_exif(encoded):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        except ValueError:
            pass  # Pillow reads more kinds of JPEG, and says better what is wrong
        else:
            if colours not in ("CMYK", "YCCK"):
                _check_size(height, width)
                return _PlainJpeg(encoded, height, width)
    return _PillowImage(encoded)


def _has_exif(jpeg: bytes) -> bool:
    """Whether there is a segment of EXIF tags; searching for the word takes a tenth of the decoding."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] not in (b"\xda", b""):
        if jpeg[place + 1] == 0xE1 and jpeg[place + 4 : place + 10] == b"Exif\0\0":
            return True
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return False


class _PlainJpeg(OpenImage):
    def __init__(self, encoded: bytes, height: int, width: int):
        self._encoded, self.height, self.width = encoded, height, width

    def pixels(self, shrink: int = 1) -> np.ndarray:
        least = {"min_height": -(-self.height // shrink), "min_width": -(-self.width // shrink)}
        try:
            return simplejpeg.decode_jpeg(self._encoded, "RGB", **(least if shrink > 1 else {}))
        except ValueError:
            return _PillowImage(self._encoded).pixels(shrink)  # forgives bytes between segments


class _PillowImage(OpenImage):
    def __init__(self, encoded: bytes):
        with _explained():
            self._image = Image.open(io.BytesIO(encoded))
            turned = self._image.getexif().get(ORIENTATION, 1) >= 5
        width, height = self._image.size
        _check_size(height, width)
        self.height, self.width = (width, height) if turned else (height, width)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        with _explained():
            if shrink > 1:  # only JPEG heeds it
                self._image.draft("RGB", tuple(max(1, side // shrink) for side in self._image.size))
            self._image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(self._image)))


class _explained:
    """Turn whatever Pillow raises about a file into an ImageError.

    Its plugins raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Image.UnidentifiedImageError):
            raise ImageError("no image format that is known") from None
        if isinstance(error, Exception) and not isinstance(error, ImageError | MemoryError):
            raise ImageError(" ".join(str(error).split()) or kind.__name__) from None


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width}×{height} pixels are more than the {MAX_PIXELS:,} that are read")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits in 16 or in 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("32-bit pixels, of which nobody knows the range")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("floating-point pixels, of which nobody knows the range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
