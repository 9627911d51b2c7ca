"""Reads videos and webcams, one frame at a time in constant memory."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.errors import DataError
from dino_core.files import require_regular_file
from dino_core.processing.preprocess import UInt8Image

FALLBACK_FPS = 25.0
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg"
_MAX_FAILURES = 10  # reads that fail one after the other until the rest of a file is given up


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
    with _decoding(path), opened_video(path) as container:
        stream = _video_stream(path, container)
        return VideoInfo(_frame_rate(stream), _promised_frames(container, stream))


def read_video(path: Path, every: int = 1) -> Iterator[VideoFrame]:
    """Every `every`-th frame, upright.

    A packet that cannot be decoded loses its own frames only.

    Raises:
        DataError: the file cannot be decoded; where it is damaged or ends early, after all frames
            that can be read.
    """
    with _decoding(path), opened_video(path) as container:
        stream = _video_stream(path, container)
        # Threads that decode several frames at once would lose up to one frame per thread with a
        # damaged one, and at the end of the file without an error.
        stream.thread_type = "SLICE"
        fps = _frame_rate(stream)
        start: float | None = None
        read = _PacketReader(path, container, stream)
        for number, frame in read.frames():
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
        read.check_complete()


class _PacketReader:
    """Decodes the packets of a video stream one by one, and notes what is missing."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self._path = path
        self._container = container
        self._stream = stream
        self._packets = self._decoded = self._damaged = 0
        self._end_s = 0.0  # where the last packet of any stream ends

    def frames(self) -> Iterator[tuple[int, Any]]:
        """The frames with their numbers, in which frames that are lost have a share."""
        import av

        # Packets come in decoding order. The number of a frame is the rank of its time among those
        # of all packets, so that the frames after a lost one keep their numbers.
        waiting: list[int] = []
        number = -1
        for packet in self._read():
            if packet.pts is not None:
                heapq.heappush(waiting, packet.pts)
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                self._damaged += 1
                continue
            for frame in decoded:
                number += 1
                if frame.pts is not None:
                    lost = -1
                    while waiting and waiting[0] <= frame.pts:
                        heapq.heappop(waiting)
                        lost += 1
                    number += max(0, lost)
                self._decoded += 1
                yield number, frame

    def _read(self) -> Iterator[Any]:
        """The packets of the stream, with those after a place where the file is damaged."""
        import av

        failures = 0
        packets = self._container.demux()
        while failures < _MAX_FAILURES:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                failures += 1
                self._damaged += 1
                packets = self._container.demux()
                continue
            failures = 0 if packet.size else failures
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                self._end_s = max(self._end_s, float(end))
            if packet.stream.index == self._stream.index:
                self._packets += packet.size > 0
                yield packet

    def check_complete(self) -> None:
        """Raises DataError where frames are missing."""
        found = f"{self._decoded:,} {'frame was' if self._decoded == 1 else 'frames were'} read"
        promised = _promised_frames(self._container, self._stream)
        if promised is not None and self._ends_early():
            raise DataError(
                f"{self._path}: the video ends early: {promised:,} frames are promised and {found}",
                "copy or download the file again",
            )
        if self._damaged or not self._decoded:
            where = "1 place" if self._damaged == 1 else f"{self._damaged:,} places"
            raise DataError(
                f"{self._path}: the video is damaged in {where}: {found}"
                + (f" of {promised:,}" if promised is not None else ""),
                "copy or download the file again",
            )

    def _ends_early(self) -> bool:
        """Whether the packets end before the length that the header states.

        Lengths are compared and not only counts, because an edit list may hide frames. Where the
        file states no count, its length may be rounded.
        """
        import av

        stream, container = self._stream, self._container
        exact = bool(stream.frames)
        if exact and stream.duration is not None:
            start = float((stream.start_time or 0) * stream.time_base)
            length = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            start = (container.start_time or 0) / av.time_base
            length = container.duration / av.time_base
        else:
            return False
        tolerance = 0.5 / _frame_rate(stream) if exact else max(1.0, 0.05 * length)
        missing = start + length - self._end_s
        return missing > tolerance and not (exact and self._packets >= stream.frames)


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


@contextlib.contextmanager
def opened_video(path: Path) -> Iterator[Any]:
    """A video file for reading.

    FFmpeg gets the open file and not its name, since it takes a name such as `tcp:host:1.mp4` for
    an address. It may only use the formats of `VIDEO_SUFFIXES`: others, such as playlists, name
    further files and addresses that it would open.
    """
    import av

    require_regular_file(path)
    with path.open("rb") as file, av.open(file, options={"format_whitelist": _FORMATS}) as opened:
        yield opened


def _frame_rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or FALLBACK_FPS)


def _promised_frames(container: Any, stream: Any) -> int | None:
    """The number of frames by the header; estimated from the length where it has none."""
    import av

    fps = _frame_rate(stream)
    if stream.frames:
        return int(stream.frames)
    if stream.duration is not None and stream.time_base is not None:
        return max(1, round(float(stream.duration * stream.time_base) * fps))
    if container.duration is not None:
        return max(1, round(float(container.duration / av.time_base) * fps))
    return None


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
