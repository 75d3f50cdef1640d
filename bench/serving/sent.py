"""Images and videos as requests to a server have them: files in base64, or raw pixels; sizes are looked at first."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

LONGEST_SIDE = 16384
Pixels = UInt8[np.ndarray, "*frame 3 height width"] | Float[np.ndarray, "*frame 3 height width"]


class MalformedError(ValueError):
    """What the other side sent is not of the protocol: one line that says what is wrong."""


Opened = tuple[tuple[int, int, int], int, Callable[[], Any]]
"""Height, width and channels of an image, the bytes of a number, and what reads it."""


def item(pixels: Pixels) -> bytes:
    """Return an image, or the images of a video, as requests have them: raw."""
    if pixels.ndim == 4:
        return b"[" + b", ".join(item(frame) for frame in pixels) + b"]"
    eight = pixels.dtype == np.uint8
    array = np.moveaxis(pixels, 0, -1) if eight else pixels
    raw = np.ascontiguousarray(array, "u1" if eight else "<f4")
    kind = {"dtype": "uint8" if eight else "float32", "shape": list(raw.shape)}
    return json.dumps(kind).encode()[:-1] + b', "raw": "' + base64.b64encode(raw.tobytes()) + b'"}'


def opened(value: Any, where: str, media: str) -> list[Opened]:
    """Return the image, or the frames of the video, that a request has there, without their pixels.

    Raises:
        MalformedError: if it is none.
    """
    if media == "image":
        return [_opened(value, where)]
    if not isinstance(value, list) or not value:
        raise MalformedError(f"{where} is to be a list of images, the frames of a video")
    frames = [_opened(one, f"{where}[{at}]") for at, one in enumerate(value)]
    if len({(shape, size) for shape, size, _ in frames}) > 1:
        raise MalformedError(f"the frames of {where} are not all of one size and kind")
    return frames


def _opened(value: Any, where: str) -> Opened:
    kinds = [key for key in ("png", "jpeg", "raw") if isinstance(value, dict) and isinstance(value.get(key), str)]
    if len(kinds) != 1:
        raise MalformedError(f"{where} is to be an object with one of `png`, `jpeg` and `raw`, a text in base64")
    if kinds == ["raw"]:
        return _raw(value, where)
    return _file(_bytes(value[kinds[0]], where), "PNG" if kinds == ["png"] else "JPEG", where)


def _bytes(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"{where} is no base64") from error


def _raw(value: Mapping[str, Any], where: str) -> Opened:
    dtype, shape = value.get("dtype"), value.get("shape")
    if dtype not in ("uint8", "float32"):
        raise MalformedError(f"{where}: `dtype` is to be uint8 or float32")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int or n < 1 for n in shape):
        raise MalformedError(f"{where}: `shape` is to be three whole numbers from 1 on")
    eight = dtype == "uint8"
    channels = shape[2] if eight else shape[0]
    if channels != 3:
        order = "[height, width, 3]" if eight else "[3, height, width]"
        raise MalformedError(f"{where}: `shape` of {dtype} is {order}, RGB, not {shape}")
    size, text = math.prod(shape) * (1 if eight else 4), value["raw"]
    if len(text) != 4 * math.ceil(size / 3):
        raise MalformedError(f"{where}: {shape} of {dtype} are {size:,} bytes, and `raw` is not as long")

    def read() -> Any:
        data = _bytes(text, where)
        if len(data) != size:
            raise MalformedError(f"{where}: {shape} of {dtype} are {size:,} bytes, and `raw` has {len(data):,}")
        if eight:
            return np.ascontiguousarray(np.frombuffer(data, "u1").reshape(shape).transpose(2, 0, 1))
        array = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
        if not np.isfinite(array).all() or array.min() < -0.01 or array.max() > 1.01:
            raise MalformedError(f"{where}: float32 lies in [0, 1]")
        return array

    high, wide = (shape[0], shape[1]) if eight else (shape[1], shape[2])
    return _sized(high, wide, where), 1 if eight else 4, read


def _file(data: bytes, kind: Literal["PNG", "JPEG"], where: str) -> Opened:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=[kind])  # reads the header alone
    except Exception as error:  # a damaged file raises one of many kinds
        raise MalformedError(f"{where} is no {kind} that is read here ({type(error).__name__})") from error
    if image.mode != "RGB":
        raise MalformedError(f"{where} is of mode {image.mode}: RGB is wanted, 8 bits a channel")
    size = _sized(image.height, image.width, where)

    def read() -> Any:
        try:
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        except Exception as error:
            raise MalformedError(f"{where} is a damaged {kind}") from error
        finally:
            image.close()  # it has a copy of the pixels

    return size, 1, read


def _sized(high: int, wide: int, where: str) -> tuple[int, int, int]:
    if max(high, wide) > LONGEST_SIDE:
        raise MalformedError(f"{where} is of {high} x {wide} pixels: a side has {LONGEST_SIDE:,} at most")
    return high, wide, 3
