"""Videos and webcams in, annotated videos out, one frame at a time in constant memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.errors import DataError, DinoError
from dino_core.files import write_error
from dino_core.processing.preprocess import UInt8Image

_FALLBACK_FPS = 25.0
_CLOCK = 90_000  # ticks a second: the MPEG clock, fine enough for every frame rate
_CODECS = ("libx264", "libopenh264", "mpeg4")


@dataclass(frozen=True)
class VideoInfo:
    """Facts of a video file.

    Attributes:
        fps: Average frames per second.
        frames: Number of frames, estimated from the duration if need be; None where unknown.
    """

    fps: float
    frames: int | None


@dataclass(frozen=True)
class VideoFrame:
    """One decoded frame: upright (H, W, 3) RGB uint8, its number from 0, its time."""

    image: UInt8Image
    number: int
    time_s: float


def probe_video(path: Path) -> VideoInfo:
    """Read a video's facts. Raises DataError where it cannot be decoded or holds no picture."""
    import av

    with _decoding(path), av.open(str(path)) as container:
        stream = _video_stream(path, container)
        fps = float(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)
        count: int | None = stream.frames or None
        if count is None and stream.duration is not None and stream.time_base is not None:
            count = max(1, round(float(stream.duration * stream.time_base) * fps))
        elif count is None and container.duration is not None:
            count = max(1, round(container.duration / av.time_base * fps))
        return VideoInfo(fps, count)


def read_video(path: Path, every: int = 1) -> Iterator[VideoFrame]:
    """Each `every`-th frame, upright. Raises DataError when the file is damaged on the way."""
    import av

    with _decoding(path), av.open(str(path)) as container:
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate or _FALLBACK_FPS)
        start: float | None = None
        for number, frame in enumerate(container.decode(stream)):
            if start is None:
                start = frame.time or 0.0
            if number % every:
                continue
            time_s = number / fps if frame.time is None else frame.time - start
            image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            yield VideoFrame(np.ascontiguousarray(image), number, time_s)


def read_webcam(device: int, every: int = 1) -> Iterator[VideoFrame]:
    """Frames of webcam `device` until it stops. Raises DataError when it cannot be opened."""
    import cv2

    camera = cv2.VideoCapture(device)
    try:
        if not camera.isOpened():
            raise DataError(f"webcam {device}: cannot be opened", "is it plugged in and free?")
        start = time.monotonic()
        number = 0
        while True:
            good, bgr = camera.read()
            if not good:
                return
            if number % every == 0:
                image = np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)
                yield VideoFrame(image, number, time.monotonic() - start)
            number += 1
    finally:
        camera.release()


def _video_stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise DataError(f"{path}: holds no video stream")
    return container.streams.video[0]


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Decoder errors as DataError with the path."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: the video cannot be decoded ({reason})") from error


class VideoFile:
    """A video being written: H.264 where the build has it, else MPEG-4, playable everywhere.

    Odd sizes grow by one pixel, which 4:2:0 colour needs. The file appears when `close` is called.
    """

    def __init__(self, path: Path, fps: float | None, size_hw: tuple[int, int]) -> None:
        """Start a video.

        Args:
            path: Where to; an `.mp4`.
            fps: Frames per second; 25 where None.
            size_hw: Size of every frame.
        """
        import av

        self.path = path
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._even_hw = (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2)
        rate = Fraction(fps or _FALLBACK_FPS).limit_denominator(1001)
        self._ticks_per_frame = max(1, round(_CLOCK / rate))
        self._last_tick = -1
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._part), "w", format="mp4")
            codec = next(c for c in _CODECS if c in av.codecs_available)
            stream: Any = self._container.add_stream(codec, rate=rate)
            self._stream = stream
            self._stream.height, self._stream.width = self._even_hw
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            if codec != "mpeg4":
                self._stream.options = {"crf": "20", "preset": "veryfast"}
            else:
                self._stream.codec_context.time_base = 1 / rate  # MPEG-4 allows 16 bits of clock
                self._stream.bit_rate = 4 * self._even_hw[0] * self._even_hw[1]

    def add(self, image: UInt8Image, time_s: float | None) -> None:
        """Append an (H, W, 3) RGB frame, shown at `time_s` or one frame after the last."""
        import av

        pad = [(0, e - s) for e, s in zip(self._even_hw, image.shape, strict=False)]
        if any(after for _, after in pad):
            image = np.pad(image, [*pad, (0, 0)], mode="edge")
        next_tick = (
            self._last_tick + 1
            if self._last_tick < 0
            else (self._last_tick + self._ticks_per_frame)
        )
        tick = next_tick if time_s is None else max(self._last_tick + 1, round(time_s * _CLOCK))
        self._last_tick = tick
        with self._writing():
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            base = self._stream.codec_context.time_base
            frame.pts = round(tick / _CLOCK / base)
            frame.time_base = base
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file and move it into its place."""
        with self._writing():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._part, self.path)

    def abort(self) -> None:
        """Leave nothing behind."""
        import av

        with contextlib.suppress(OSError, av.FFmpegError, AttributeError):
            self._container.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        import av

        try:
            yield
        except OSError as error:
            self.abort()
            raise write_error(self.path, error, DinoError) from error
        except (av.FFmpegError, ValueError) as error:
            self.abort()
            raise DinoError(f"{self.path}: the video cannot be written ({error})") from error
