"""Frames → an animated GIF, a film, or a folder of PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip.errors import ConfigError, MissingDependencyError, ShapeError

if TYPE_CHECKING:
    from av import VideoStream

__all__ = ["write_frames", "write_gif", "write_mp4"]

MOST_PIXELS = 1 << 28
"""Of all frames together: 800 MB of them in memory."""

Frames = Sequence[NDArray[np.uint8]]


def write_gif(path: str | os.PathLike[str], frames: Frames, *, seconds: float = 3.0, last: float = 1.5) -> None:
    """A GIF that runs for ever, all frames in the colours of one palette.

    seconds: of the whole way; the last frame stays for ``last`` more. Written beside ``path`` and moved there.
    """
    pictures = [Image.fromarray(frame) for frame in _checked(frames)]
    # The palette of all frames in a strip: one of its own for each would flicker.
    strip = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (0, i * picture.height))
    palette = strip.quantize(255, method=Image.Quantize.MEDIANCUT)
    paletted = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    each = max(round(1000 * seconds / len(paletted)), 20)  # browsers slow down what is faster
    durations = [each] * (len(paletted) - 1) + [each + round(1000 * last)]
    partial = _partial(path)
    try:
        paletted[0].save(
            partial, format="GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0, optimize=False
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_mp4(path: str | os.PathLike[str], frames: Frames, *, seconds: float = 3.0, last: float = 1.5) -> None:
    """A film (MPEG-4 part 2 where there is no H.264), cut to even sides. Needs PyAV, the extra ``video``."""
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            "films need PyAV, which is not installed; pip install 'everyclip[video]', or write a .gif"
        ) from error
    shown = _checked(frames)
    rate = max(round(len(shown) / seconds), 1)
    height, width = (side - side % 2 for side in shown[0].shape[:2])
    if min(height, width) < 2:
        raise ShapeError(f"frames of {shown[0].shape[1]}×{shown[0].shape[0]} pixels are too small for a film")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    partial = _partial(path)
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = cast("VideoStream", container.add_stream(codec, rate=rate))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in [*shown, *[shown[-1]] * round(rate * last)]:
                picture = np.ascontiguousarray(frame[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_frames(folder: str | os.PathLike[str], frames: Frames) -> None:
    """``0000.png``, ``0001.png`` …; the folder is made where there is none, and other files in it stay."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(_checked(frames)):
        partial = _partial(place / f"{i:04}.png")
        try:
            Image.fromarray(frame).save(partial, format="PNG")
            partial.replace(place / f"{i:04}.png")
        finally:
            partial.unlink(missing_ok=True)


def _checked(frames: Frames) -> Frames:
    if not len(frames):
        raise ConfigError("there are no frames; at least one is needed")
    shape = frames[0].shape
    for i, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
            raise ShapeError(
                f"frame {i} is {frame.dtype} of shape {frame.shape}; uint8 (height, width, 3) in all is expected"
            )
    if len(frames) * shape[0] * shape[1] > MOST_PIXELS:
        raise ConfigError(f"{len(frames)} frames of {shape[1]}×{shape[0]} pixels; at most {MOST_PIXELS} pixels in all")
    return frames


def _partial(path: str | os.PathLike[str]) -> Path:
    place = Path(path)
    return place.with_name(f".{place.name}.{os.getpid()}.partial")
