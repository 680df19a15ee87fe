"""Still pictures in: files to upright sRGB pixels, and pixels to the size of a clip.

Source of the sizes and of the resizing: ``best_output_size`` of wan/utils/utils.py and ``WanTI2V.i2v`` of
wan/textimage2video.py in github.com/Wan-Video/Wan2.2.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

__all__ = ["ImageError", "prepare_image", "read_image", "size_like"]

_EIGHT_BITS = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa")
_SEVERAL_PICTURES = ("MPO",)  # a camera's JPEG with previews behind its picture, not an animation


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says what to do."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture file as upright sRGB pixels.

    It is turned as its EXIF orientation asks, and brought to sRGB from the colour profile it carries. Greyscale (1, 8
    or 16 bits), palettes and CMYK become RGB, 16 bits are rounded to 8; an alpha channel that is opaque everywhere is
    left out.

    Returns: [H0, W0, 3] uint8.
    Raises:
        FileNotFoundError: no such file.
        ImageError: empty, not a picture, cut short or damaged, animated, transparent, or of a kind whose brightness is
            not defined (32-bit integers, floats).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty; write or download it again")
    try:
        with Image.open(path) as image:
            if getattr(image, "is_animated", False) and image.format not in _SEVERAL_PICTURES:
                raise ImageError(f"{path}: an animation, not a still picture; save the frame that is meant")
            image.load()
            return _pixels(path, ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture in a format that Pillow reads; save it as PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; scale it down first") from error
    except (OSError, SyntaxError, EOFError) as error:  # SyntaxError is how Pillow reports a broken PNG
        raise ImageError(f"{path}: cut short or damaged ({error}); write or download it again") from error


def _pixels(path: Path, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image.convert("I"), np.float64)
        return np.repeat(np.rint(deep * (255 / 65535)).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode not in _EIGHT_BITS:
        raise ImageError(f"{path}: pixels of Pillow's mode {image.mode!r}; save it as an 8-bit RGB PNG or JPEG")
    if image.has_transparency_data:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise ImageError(f"{path}: has transparent pixels; flatten it onto a background first")
        image = image.convert("RGB")
    return np.asarray(_in_srgb(path, image).convert("RGB"))


def _in_srgb(path: Path, image: Image.Image) -> Image.Image:
    stored = image.info.get("icc_profile")
    if not stored:
        return image
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        if "sRGB" in ImageCms.getProfileDescription(profile):  # converting to the same would only round
            return image
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ImageError(f"{path}: its colour profile cannot be applied ({error}); convert it to sRGB first") from error
    assert converted is not None  # None is for inPlace
    return converted


def size_like(
    image_height: int, image_width: int, *, area: int, step_h: int, step_w: int
) -> tuple[int, int]:
    """The largest clip of at most ``area`` pixels that is shaped like an image, as nearly as the steps allow.

    Wan2.2's rule for TI2V-5B, used here for every checkpoint. (The script of I2V-A14B floors both sides instead, which
    makes 832 x 464 of an image of 832 x 480 at its own area.)

    Args:
        image_height, image_width: in pixels.
        area: height times width, such as 480 * 832 or 720 * 1280.
        step_h, step_w: sides are multiples of these: the codec's stride times the transformer's patch.
    Returns: (H, W).
    Raises: ValueError where no clip of this area and shape is a step high and wide.
    """
    if min(image_height, image_width, step_h, step_w) < 1:
        raise ValueError(
            f"image of {image_height} x {image_width} pixels, steps {step_h} and {step_w}: expected at least 1"
        )
    ratio = image_width / image_height
    width = (area * ratio) ** 0.5
    height = area / width if width else 0.0
    wide, high = int(width // step_w * step_w), int(height // step_h * step_h)
    if not wide or not high:
        raise ValueError(
            f"an area of {area} pixels in the shape of an image of {image_height} x {image_width} (height x width) "
            f"leaves a side shorter than {step_h} (height) or {step_w} (width): crop the image or ask for a larger area"
        )
    sizes = ((int(area / wide // step_h * step_h), wide), (high, int(area / high // step_w * step_w)))

    def stretch(size: tuple[int, int]) -> float:
        other = size[1] / size[0]
        return max(ratio / other, other / ratio)

    return sizes[0] if stretch(sizes[0]) < stretch(sizes[1]) else sizes[1]


def prepare_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image as the codec takes it: scaled to cover height x width (Lanczos, antialiased), its middle cut out.

    Args:
        image: [H0, W0, 3], uint8 or float in [0, 1].
        height, width: H and W in pixels.
    Returns: [H, W, 3] float32 in [-1, 1]. An image of this size keeps its pixels; of uint8 they are resized in uint8,
        as the reference does.
    Raises: ValueError where the image has another shape, type or range.
    """
    image = np.asarray(image)
    eight = image.dtype == np.uint8
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape or not (eight or image.dtype.kind == "f"):
        raise ValueError(f"image {list(image.shape)} {image.dtype}: expected [H, W, 3], uint8 or float in [0, 1]")
    if not eight and not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"image with values from {image.min():g} to {image.max():g}: floats are expected in [0, 1]")
    h, w = image.shape[:2]
    scale = max(width / w, height / h)
    size = round(w * scale), round(h * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pictures = [Image.fromarray(image)] if eight else [
        Image.fromarray(np.asarray(image[..., channel], np.float32)) for channel in range(3)
    ]  # fmt: skip
    resized = [np.asarray(one.resize(size, Image.Resampling.LANCZOS)) for one in pictures]
    # Lanczos overshoots beside edges; 8 bits are cut by their type
    pixels = resized[0] / np.float32(255) if eight else np.clip(np.stack(resized, axis=-1), 0, 1)
    return np.asarray(pixels[top : top + height, left : left + width] * 2 - 1, np.float32)
