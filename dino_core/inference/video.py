"""Reads videos and webcams and writes annotated videos, one frame at a time in constant memory."""

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
_CLOCK = 90_000  # ticks per second: the clock of MPEG, fine enough for every frame rate
_CODECS = ("libx264", "libopenh264", "mpeg4")  # in order of preference


@dataclass(frozen=True)
class VideoInfo:
    """Frame rate and length of a video file.

    Attributes:
        fps: Average frames per second.
        frames: Number of frames, possibly estimated from the duration; None where unknown.
    """

    fps: float
    frames: int | None


@dataclass(frozen=True)
class VideoFrame:
    """One decoded frame.

    Attributes:
        image: (H, W, 3) RGB uint8, upright.
        number: Its number in the video, from 0.
        time_s: Its time in seconds after the first frame.
    """

    image: UInt8Image
    number: int
    time_s: float


def probe_video(path: Path) -> VideoInfo:
    """Frame rate and length of a video.

    Raises:
        DataError: the file cannot be decoded, or has no video stream.
    """
    import av

    with _decoding(path), av.open(str(path)) as container:
        stream = _video_stream(path, container)
        fps = float(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)
        # The number in the file's header, which many formats leave at 0. Then the length is
        # estimated from the duration of the stream, or else of the whole file.
        count: int | None = stream.frames or None
        if count is None and stream.duration is not None and stream.time_base is not None:
            count = max(1, round(float(stream.duration * stream.time_base) * fps))
        elif count is None and container.duration is not None:
            count = max(1, round(container.duration / av.time_base * fps))
        return VideoInfo(fps, count)


def read_video(path: Path, every: int = 1) -> Iterator[VideoFrame]:
    """Every `every`-th frame, upright.

    Raises:
        DataError: the file cannot be decoded; if it is damaged further on, after the frames before.
    """
    import av

    with _decoding(path), av.open(str(path)) as container:
        stream = _video_stream(path, container)
        # Decoding with several threads, which FFmpeg does not do by default.
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate or _FALLBACK_FPS)
        start: float | None = None
        for number, frame in enumerate(container.decode(stream)):
            if start is None:
                # The first frame of a cut video often has a time above 0.
                start = frame.time or 0.0
            # Skipped frames must be decoded all the same, since later ones refer to them.
            if number % every:
                continue
            time_s = number / fps if frame.time is None else frame.time - start
            # Phones store every video in the sensor's orientation, with a rotation beside it.
            # FFmpeg states it in degrees counterclockwise, the direction of `rot90`.
            image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            yield VideoFrame(np.ascontiguousarray(image), number, time_s)


def read_webcam(device: int, every: int = 1) -> Iterator[VideoFrame]:
    """Every `every`-th frame of webcam `device`, until the webcam stops.

    Raises:
        DataError: the webcam cannot be opened.
    """
    import cv2

    camera = cv2.VideoCapture(device)
    try:
        if not camera.isOpened():
            raise DataError(
                f"webcam {device}: cannot be opened",
                "check that it is connected and not in use by another program",
            )
        start = time.monotonic()
        number = 0
        while True:
            good, bgr = camera.read()
            if not good:
                return
            if number % every == 0:
                # OpenCV delivers BGR. The reversed view is copied into plain RGB rows.
                image = np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)
                yield VideoFrame(image, number, time.monotonic() - start)
            number += 1
    finally:
        camera.release()


def _video_stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise DataError(f"{path}: has no video stream")
    return container.streams.video[0]


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Raise errors of the decoder as DataError with the path."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: the video cannot be decoded ({reason})") from error


class VideoFile:
    """A video that is being written: H.264 where PyAV has an encoder for it, else MPEG-4.

    The file appears when `close` is called. Odd heights and widths are extended by one pixel,
    because 4:2:0 chroma subsampling, the one that all players support, needs even ones.
    """

    def __init__(self, path: Path, fps: float | None, size_hw: tuple[int, int]) -> None:
        """Start a video.

        Args:
            path: The file to write, with the suffix `.mp4`.
            fps: Frames per second; None stands for 25.
            size_hw: Height and width of every frame.

        Raises:
            DinoError: the file cannot be written.
        """
        import av

        self.path = path
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._even_hw = (size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2)
        # NTSC rates such as 29.97 are 30000/1001; a float has to be turned back into that fraction.
        rate = Fraction(fps or _FALLBACK_FPS).limit_denominator(1001)
        self._ticks_per_frame = max(1, round(_CLOCK / rate))
        self._last_tick = -1
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._part), "w", format="mp4")
            # libx264 is missing in builds without GPL parts; MPEG-4 is in practically all of them.
            codec = next(c for c in _CODECS if c in av.codecs_available)
            stream: Any = self._container.add_stream(codec, rate=rate)
            self._stream = stream
            self._stream.height, self._stream.width = self._even_hw
            self._stream.pix_fmt = "yuv420p"
            # Frames are stamped with their own times instead of a constant rate: --every and
            # videos of variable rate would otherwise run at a wrong speed.
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            if codec != "mpeg4":
                self._stream.options = {"crf": "20", "preset": "veryfast"}
            else:
                # The denominator of an MPEG-4 time base has 16 bits, too few for 90,000.
                self._stream.codec_context.time_base = 1 / rate
                self._stream.bit_rate = 4 * self._even_hw[0] * self._even_hw[1]

    def add(self, image: UInt8Image, time_s: float | None) -> None:
        """Append a frame.

        Args:
            image: (H, W, 3) RGB uint8 of the size given at the start.
            time_s: When it is shown; None shows it one frame after the last one.

        Raises:
            DinoError: the file cannot be written.
        """
        import av

        # Repeating the edge, since a black line would be visible.
        pad = [(0, e - s) for e, s in zip(self._even_hw, image.shape, strict=False)]
        if any(after for _, after in pad):
            image = np.pad(image, [*pad, (0, 0)], mode="edge")
        next_tick = (
            self._last_tick + 1
            if self._last_tick < 0
            else (self._last_tick + self._ticks_per_frame)
        )
        # Encoders refuse times that do not increase, which damaged videos may have.
        tick = next_tick if time_s is None else max(self._last_tick + 1, round(time_s * _CLOCK))
        self._last_tick = tick
        with self._writing():
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            base = self._stream.codec_context.time_base
            frame.pts = round(tick / _CLOCK / base)
            frame.time_base = base
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Complete the file and give it its name. Raises DinoError where that fails."""
        with self._writing():
            # Encoders hold frames back to refer to later ones. None makes them release all of them.
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._part, self.path)

    def abort(self) -> None:
        """Remove the incomplete file."""
        import av

        # AttributeError: opening may have failed before there was a container.
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
