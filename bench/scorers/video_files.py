"""Files of videos: MP4 and WebM by PyAV, animated GIF, PNG and WebP by Pillow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # names of scorers do not wait for torch

INSTALL = "pip install 'arbor-bench[video]'"
LIMIT = 4_000_000_000
"""Bytes of decoded pixels that are read of one file."""
ANIMATED = frozenset({".gif", ".png", ".apng", ".webp"})
"""Endings of what Pillow reads."""
CRF = 25
"""Of written files, as imageio has it at its own quality 5, by which diffusers writes them."""
STEADY = {"x264-params": "threads=1:asm=sse4.2"}
"""For the same file every time: x264's code for AVX-512 writes one of several, by chance."""

Frames = list[UInt8[np.ndarray, "height width 3"]]


def read_video(path: Path, limit: int = LIMIT) -> tuple[UInt8[Tensor, "frame 3 height width"], float]:
    """Return the frames of a file and how many a second.

    Raises:
        FileNotFoundError: it is not there.
        ModuleNotFoundError: PyAV is not installed.
        ValueError: it is no video, has no frames, is damaged, or has more than `limit` bytes of pixels.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    if path.suffix.lower() in ANIMATED:
        frames, fps = _animation(path, limit)
    else:
        with path.open("rb") as file:
            frames, fps = decoded(file, str(path), limit)
    return _stacked(frames), fps


def video_size(path: Path) -> tuple[int, int, int]:
    """Return frames, height and width of a file, without decoding what PyAV reads.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: it is no video, or damaged.
    """
    if path.suffix.lower() in ANIMATED:
        with _opened_animation(path) as image:
            return image.n_frames, image.height, image.width
    with _opened_stream(path) as (container, stream):
        count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        return count, stream.height, stream.width


def video_rate(path: Path) -> float:
    """Return how many frames a second a file has, as `read_video` does.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: it is no video, is damaged, or does not say.
    """
    if path.suffix.lower() in ANIMATED:
        return _animation(path, LIMIT)[1]
    with _opened_stream(path) as (_, stream):
        return _rate(stream, str(path))


@contextmanager
def _opened_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the container and stream of a file; what it raises of a file that is no video is a ValueError."""
    av = _av(f"reading {path}")
    try:
        with av.open(str(path)) as container:
            yield container, _video_of(container, str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path} is no video, or damaged: {error.strerror or error}") from error


def write_video(path: Path, frames: UInt8[Tensor, "frame 3 height width"], fps: float, crf: int = CRF) -> None:
    """Write an MP4.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: as `encoded`.
    """
    path.write_bytes(encoded(frames, fps, crf))


def through_file(
    frames: UInt8[Tensor, "frame 3 height width"], fps: float, crf: int = CRF
) -> UInt8[Tensor, "frame 3 height width"]:
    """Return frames as they are read back from the MP4 that they are written to."""
    back, _ = decoded(BytesIO(encoded(frames, fps, crf)), "the video as a file", LIMIT)
    return _stacked(back).to(frames.device)


def encoded(frames: UInt8[Tensor, "frame 3 height width"], fps: float, crf: int = CRF) -> bytes:
    """Return an MP4 of H.264, the same whenever it is written.

    Colours are 4:2:0 as everywhere; 4:4:4 where a side is odd, which 4:2:0 cannot be.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: if there are no frames, or `fps` is not positive.
    """
    av = _av("writing an MP4")
    if 0 in frames.shape or fps <= 0:
        raise ValueError(f"a video of shape {list(frames.shape)} at {fps:g} frames a second cannot be written")
    height, width = frames.shape[-2:]
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", Fraction(fps).limit_denominator(1001), options={"crf": str(crf), **STEADY}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p" if height % 2 or width % 2 else "yuv420p"
        for frame in frames.permute(0, 2, 3, 1).cpu().numpy():
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def decoded(file: Any, name: str, limit: int) -> tuple[Frames, float]:
    """Return the frames of an open file and how many a second; `name` is what errors call it.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: it is no video, has no frames, is damaged, or has more than `limit` bytes of pixels.
    """
    av = _av(f"reading {name}")
    try:
        with av.open(file) as container:
            stream = _video_of(container, name)
            rate = _rate(stream, name)
            frames = _pictures(container, stream, name, limit)
            _check_whole(name, container, stream, frames)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{name} is no video, or damaged: {error.strerror or error}") from error
    return [array for array, _ in frames], rate


def _video_of(container: Any, name: str) -> Any:
    """Return the stream that is read."""
    if not container.streams.video:
        raise ValueError(f"{name} has no video in it")
    return container.streams.video[0]


def _rate(stream: Any, name: str) -> float:
    """Return the frames a second of a stream."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise ValueError(f"{name} does not say how many frames it has a second")
    return float(rate)


def _pictures(container: Any, stream: Any, name: str, limit: int) -> list[tuple[np.ndarray, float | None]]:
    """Return each frame and its time."""
    _check_size(name, stream.frames or 1, stream.height, stream.width, limit)
    frames = []
    for frame in container.decode(stream):
        _check_size(name, len(frames) + 1, frame.height, frame.width, limit)
        frames.append((frame.to_ndarray(format="rgb24"), frame.time))
    if not frames:
        raise ValueError(f"{name} has no frames")
    return frames


def _check_whole(name: str, container: Any, stream: Any, frames: list[tuple[np.ndarray, float | None]]) -> None:
    """Raise ValueError if a file announces more frames, or a longer time, than it has."""
    if len(frames) < stream.frames:
        raise ValueError(f"{name} is cut short: it announces {stream.frames} frames and has {len(frames)}")
    last, rate = frames[-1][1], stream.average_rate
    if stream.frames or container.duration is None or len(container.streams) > 1 or last is None or not rate:
        return
    announced = container.duration / 1e6
    if announced - last > 2.5 / float(rate):
        raise ValueError(f"{name} is cut short: it announces {announced:.2f} s and ends after {last:.2f}")


def _animation(path: Path, limit: int) -> tuple[Frames, float]:
    """Return what Pillow reads of an animation; its frames a second are the mean."""
    from PIL import ImageSequence

    with _opened_animation(path) as image:
        _check_size(str(path), image.n_frames, image.height, image.width, limit)
        pairs = [(np.asarray(frame.convert("RGB")), _milliseconds(frame)) for frame in ImageSequence.Iterator(image)]
    return [array for array, _ in pairs], 1000.0 * len(pairs) / sum(time for _, time in pairs)


@contextmanager
def _opened_animation(path: Path) -> Iterator[Any]:
    """Yield what Pillow opens; what it raises of a file that is no animation is a ValueError."""
    from PIL import Image

    if not _is_entire(path.read_bytes()):
        raise ValueError(f"{path} is no video, or damaged: a part of it is missing or spoilt")
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) < 2:
                raise ValueError(f"{path} is one image, and no video")
            yield image
    except (OSError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no video, or damaged: {' '.join(str(error).split())}") from error


def _is_entire(data: bytes) -> bool:
    """Return whether a GIF has its end, and a PNG its chunks: Pillow reads what there is of those that do not."""
    if data.startswith(b"GIF8"):
        return data.rstrip(b"\0").endswith(b";")
    if not data.startswith(b"\x89PNG"):
        return True
    at, kind = 8, b""
    while at < len(data) and kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return False
        at = end + 4
    return kind == b"IEND"


def _milliseconds(frame: Any) -> float:
    """Return how long a frame is shown; where it does not say, what browsers take."""
    return float(frame.info.get("duration") or 100.0)


def _check_size(name: str, count: int, height: int, width: int, limit: int) -> None:
    size = 3 * count * height * width
    if size > limit:
        what = f"{count} frames of {width} x {height}"
        raise ValueError(f"{name} is too large: {what} are {size / 1e9:.3g} GB; {limit / 1e9:.3g} are read")


def _stacked(frames: Frames) -> UInt8[Tensor, "frame 3 height width"]:
    import torch

    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _av(what: str) -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} needs PyAV: {INSTALL} brings it") from error
    return av
