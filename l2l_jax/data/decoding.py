"""Decoding of images to RGB pixels: JPEG by libjpeg-turbo (simplejpeg), all other formats by Pillow.

This module must not import JAX, because worker processes import it.
"""

import contextlib
import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError, features

# Maximum number of pixels to decode, as in Pillow; larger images could exhaust the memory
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)
# TIFF and EXIF tags
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 0x0102, 0x0106

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""Functions from stored to upright pixels, by orientation; for 5 to 8, height and width are swapped."""

AVIF = ("AVIF",) if features.check("avif") else ()
# Pillow formats to decode; others, such as EPS, start programs or accept any file
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO") + AVIF
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


class ImageError(Exception):
    """A file that cannot be decoded; the message says why."""


class OpenImage:
    """An image with its `height` and `width`, in pixels after applying the EXIF orientation."""

    def __init__(self, stored: bytes | np.ndarray, height: int, width: int, orientation: int = 1):
        self._stored, self._orientation = stored, orientation
        self.height, self.width = (height, width) if orientation < 5 else (width, height)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Decode the image, uint8 `[height, width, 3]`.

        With `shrink` 2, 4 or 8, a JPEG may be decoded at a size reduced by up to this factor, which saves
        most of the work: libjpeg-turbo then skips the high frequencies of each block.

        Raises:
          ImageError: The file is damaged.
        """
        if isinstance(self._stored, np.ndarray):
            return self._stored
        height, width = (self.height, self.width) if self._orientation < 5 else (self.width, self.height)
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)} if shrink > 1 else {}
        try:
            pixels = simplejpeg.decode_jpeg(self._stored, "RGB", **least)
        except ValueError:  # Pillow tolerates extra bytes between segments
            pixels = _decode_with_pillow(self._stored)[0]
        return np.ascontiguousarray(TURNS[self._orientation](pixels))


def open_image(encoded: bytes) -> OpenImage:
    """Read the header of a JPEG, or decode an image in another format.

    All modes and bit depths are converted to 8-bit RGB (see `_to_rgb`), transparent pixels to white. The EXIF
    orientation is applied; other metadata is ignored, even if it is damaged. Only the first frame of an
    animation is read. The format is detected from the content, not from the file name.

    Raises:
      ImageError: The file cannot be decoded, or has more than `MAX_PIXELS` pixels.
    """
    if not encoded:
        raise ImageError("the file is empty")
    if encoded.startswith(JPEG):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
        except ValueError:
            pass  # Pillow supports more kinds of JPEG, and has better error messages
        else:
            if colors not in ("CMYK", "YCCK"):
                _check_size(height, width)
                return OpenImage(encoded, height, width, _jpeg_orientation(encoded))
    pixels, orientation = _decode_with_pillow(encoded)
    upright = np.ascontiguousarray(TURNS[orientation](pixels))
    return OpenImage(upright, *upright.shape[:2])


def _decode_with_pillow(encoded: bytes) -> tuple[np.ndarray, int]:
    """Return RGB pixels as stored, and the orientation; retry without metadata if decoding fails."""
    try:
        return _decode(encoded)
    except ImageError:
        with contextlib.suppress(ImageError):
            return _decode(_without_metadata(encoded))[0], _jpeg_orientation(encoded)
        raise  # the first error, which is about the original file


def _decode(encoded: bytes) -> tuple[np.ndarray, int]:
    """Decode with Pillow, whose plugins raise OSError, SyntaxError and more on damaged files."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        _check_size(image.height, image.width)
        image.load()
        return _to_rgb(image, encoded), _orientation_of(image, encoded)
    except UnidentifiedImageError:
        raise ImageError("unknown image format") from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from None


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width}×{height} pixels exceed the limit of {MAX_PIXELS:,}")


def _to_rgb(image: Image.Image, encoded: bytes) -> np.ndarray:
    """Convert an image in any of Pillow's modes to `[height, width, 3]`, uint8.

    | mode | pixels |
    | --- | --- |
    | 1, L, RGB, RGBX, YCbCr, HSV, CMYK | converted by Pillow; a PNG's transparent color becomes white |
    | P, PA, LA, La, RGBA, RGBa | converted to RGBA, composited on white |
    | I;16 and its byte orders, I | scaled to 255 from 12 or 16 bits, as stated in the file |
    | LAB | converted by LittleCMS, white point D50 |
    | F, I beyond 16 bits | rejected, because the range is unknown |
    """
    mode, key = image.mode, image.info.get("transparency")
    if mode == "F":
        raise ImageError("floating-point pixels, whose range is unknown")
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        tags = getattr(image, "tag_v2", {})  # TIFF only
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        if bits > 16 or values.min() < 0 or values.max() >= 2**bits:
            raise ImageError("32-bit or signed pixels, whose range is unknown")
        gray = np.where(values == key, 255, np.rint(values * (255 / (2**bits - 1))))
        if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow handles for 8 bits only
            gray = 255 - gray
        rgb = np.repeat(gray[..., None], 3, axis=-1)
    elif mode in ("PA", "LA", "La", "RGBA", "RGBa") or (mode == "P" and key is not None):
        if mode in ("La", "RGBa"):
            image = image.convert(mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        rgb = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    elif mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = np.asarray(ImageCms.profileToProfile(image, *profiles, outputMode="RGB"))
    else:
        rgb = np.asarray(image.convert("RGB"))
        if isinstance(key, int | tuple) and mode in ("1", "L", "RGB"):
            # PNG's transparent color has the file's bit depth; scale it as Pillow scales pixels.
            depth, values = encoded[24] if encoded.startswith(PNG) else 8, np.asarray(key)
            color = values >> 8 if depth == 16 else values * 255 // (2**depth - 1)
            rgb = np.where((rgb == color).all(axis=-1, keepdims=True), 255, rgb)
    return np.ascontiguousarray(rgb, np.uint8)


def _orientation_of(image: Image.Image, encoded: bytes) -> int:
    """Return the EXIF orientation of a loaded image; 1 for TIFF, where Pillow has already applied it."""
    if encoded.startswith(JPEG):
        return _jpeg_orientation(encoded)
    exif = image.info.get("exif", b"")
    profile = image.info.get("Raw profile type exif")  # in PNGs by ImageMagick: name, length, hexadecimal
    if not exif and isinstance(profile, str):
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(profile.split()[2:]))
    return _orientation(exif.removeprefix(b"Exif\0\0")) if image.format != "TIFF" else 1


def _orientation(exif: bytes) -> int:
    """Read only the orientation tag; return 1 if it is missing, damaged, or not one of the eight values."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", exif, place)
            if tag == ORIENTATION and kind in (3, 4) and length == 1:
                (value,) = struct.unpack_from(order + {3: "H", 4: "I"}[kind], exif, place + 8)
                return value if value in TURNS else 1
    return 1


def _jpeg_orientation(encoded: bytes) -> int:
    """Return the orientation of a JPEG; 1 for other files."""
    for marker, start, end in _jpeg_segments(encoded) if encoded.startswith(JPEG) else ():
        if marker == 0xE1 and encoded[start + 4 : start + 10] == b"Exif\0\0":
            return _orientation(encoded[start + 10 : end])
    return 1


def _jpeg_segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the segments that precede the pixels."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and place + 4 <= len(jpeg):
        marker = jpeg[place + 1]
        if marker == 0xDA:
            return
        if marker == 0xFF:  # padding
            place += 1
            continue
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4])
        yield marker, place, end
        place = end


def _without_metadata(encoded: bytes) -> bytes:
    """Remove comments and application data from a JPEG, or chunks that do not affect pixels from a PNG.

    The JFIF and Adobe segments, which define the colors of a JPEG, are kept.
    """
    if encoded.startswith(JPEG):
        kept, last = [encoded[:2]], 2
        for marker, start, end in _jpeg_segments(encoded):
            last = end
            if marker not in (0xFE, *range(0xE1, 0xEE), 0xEF):
                kept.append(encoded[start:end])
        return b"".join([*kept, encoded[last:]])
    if encoded.startswith(PNG):
        kept, place = [PNG], len(PNG)
        while place + 8 <= len(encoded):
            end = place + 12 + int.from_bytes(encoded[place : place + 4])
            name = encoded[place + 4 : place + 8]
            if name[:1].isupper() or name == b"tRNS":
                kept.append(encoded[place:end])
            place = end
        return b"".join(kept)
    return encoded
