"""Writes annotated videos with the size, times and sound of the original."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from dino_core.errors import DataError, DinoError
from dino_core.files import part_path, write_error
from dino_core.inference.video import FALLBACK_FPS, opened_video
from dino_core.processing.preprocess import UInt8Image

_CLOCK = 90_000  # ticks per second: the clock of MPEG, fine enough for every frame rate
_CODECS = ("libx264", "libopenh264", "mpeg4")  # in order of preference
_COPIED_SOUND = ("aac", "ac3", "eac3", "opus", "flac", "alac", "mp3")  # what MP4 may contain
_LOWEST_COPIED_RATE = 16_000  # MP4 refuses MP3 below
_AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000})
_SOUND_AFTER_S = 1.0  # sound that is kept after the last frame


class VideoFile:
    """A video that is being written: H.264 where PyAV has an encoder for it, else MPEG-4.

    The file appears when `close` is called. 4:2:0 chroma subsampling, the one that all players
    support, needs even heights and widths; other sizes are written without subsampling.
    """

    def __init__(
        self, path: Path, fps: float | None, size_hw: tuple[int, int], sound_of: Path | None = None
    ) -> None:
        """Start a video.

        Args:
            path: The file to write, with the suffix `.mp4`.
            fps: Frames per second; None stands for 25.
            size_hw: Height and width of every frame.
            sound_of: The video whose sound is added, if it has one and it can be read.

        Raises:
            DinoError: the file cannot be written.
        """
        import av

        self.path = path
        self._part = part_path(path)
        # NTSC rates such as 29.97 are 30000/1001; a float has to be turned back into that fraction.
        rate = Fraction(fps or FALLBACK_FPS).limit_denominator(1001)
        self._ticks_per_frame = max(1, round(_CLOCK / rate))
        self._last_tick = -1
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            # FFmpeg gets the open file, since it takes a name with a colon for an address.
            self._file = self._part.open("wb")
            self._container = av.open(self._file, "w", format="mp4")
            codec = next(c for c in _CODECS if c in av.codecs_available)
            stream: Any = self._container.add_stream(codec, rate=rate)
            self._stream = stream
            self._stream.height, self._stream.width = size_hw
            subsampled = codec != "libx264" or not (size_hw[0] % 2 or size_hw[1] % 2)
            self._stream.pix_fmt = "yuv420p" if subsampled else "yuv444p"
            # Frames are stamped with their own times instead of a constant rate: --every and
            # videos of variable rate would otherwise run at a wrong speed.
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            if codec != "mpeg4":
                self._stream.options = {"crf": "20", "preset": "veryfast"}
            else:
                # The denominator of an MPEG-4 time base has 16 bits, too few for 90,000.
                self._stream.codec_context.time_base = 1 / rate
                self._stream.bit_rate = 4 * size_hw[0] * size_hw[1]
            self._sound = None if sound_of is None else _Sound(sound_of, self._container)

    def add(self, image: UInt8Image, time_s: float | None) -> None:
        """Append a frame.

        Args:
            image: (H, W, 3) RGB uint8 of the size given at the start.
            time_s: When it is shown; None shows it one frame after the last one.

        Raises:
            DinoError: the file cannot be written.
        """
        import av

        next_tick = (
            self._last_tick + 1
            if self._last_tick < 0
            else (self._last_tick + self._ticks_per_frame)
        )
        # Encoders refuse times that do not increase, which damaged videos may have.
        tick = next_tick if time_s is None else max(self._last_tick + 1, round(time_s * _CLOCK))
        self._last_tick = tick
        with self._writing():
            if self._sound is not None:
                self._sound.copy_until(tick / _CLOCK)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            base = self._stream.codec_context.time_base
            frame.pts = round(tick / _CLOCK / base)
            frame.time_base = base
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Complete the file and give it its name. Raises DinoError where that fails."""
        with self._writing():
            self._container.mux(self._stream.encode(None))
            if self._sound is not None:
                end = (self._last_tick + self._ticks_per_frame) / _CLOCK
                self._sound.finish(end + _SOUND_AFTER_S)
            self._container.close()
            self._file.close()
            os.replace(self._part, self.path)

    def abort(self) -> None:
        """Remove the incomplete file."""
        import av

        with contextlib.suppress(OSError, av.FFmpegError, AttributeError):
            self._container.close()
        with contextlib.suppress(OSError, AttributeError):
            self._file.close()
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


class _Sound:
    """Copies the audio streams of a video, packet by packet beside the frames.

    Streams that MP4 cannot contain, such as PCM, are encoded as AAC. Sound that is damaged is left
    out from there on: it must not cost the images.
    """

    def __init__(self, source: Path, output: Any) -> None:
        self._output = output
        self._closing = contextlib.ExitStack()
        self._streams: dict[int, Any] = {}  # index of the input stream to output stream
        self._encoded: set[int] = set()
        self._start_s = 0.0
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        with self._reading():
            container = self._closing.enter_context(opened_video(source))
            video = container.streams.video[0]
            if video.start_time is not None:
                self._start_s = float(video.start_time * video.time_base)
            for stream in container.streams.audio:
                self._streams[stream.index] = self._output_stream(stream)
            if self._streams:
                self._packets = container.demux(container.streams.audio)

    def _output_stream(self, stream: Any) -> Any:
        context = stream.codec_context
        if context.name in _COPIED_SOUND and context.sample_rate >= _LOWEST_COPIED_RATE:
            return self._output.add_stream_from_template(stream)
        self._encoded.add(stream.index)
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48_000
        return self._output.add_stream("aac", rate=rate, layout=context.layout.name)

    def copy_until(self, time_s: float) -> None:
        """Copy the sound up to this time after the first frame of the video."""
        while True:
            if self._next is None:
                with self._reading():
                    self._next = next(self._packets, None)
            packet = self._next
            if packet is None or (self._time(packet) or 0.0) > time_s:
                return
            self._next = None
            self._copy(packet)

    def finish(self, time_s: float) -> None:
        """Copy the rest up to this time and close the source."""
        self.copy_until(time_s)
        for index in self._encoded:
            self._output.mux(self._streams[index].encode(None))
        self._closing.close()

    def _time(self, packet: Any) -> float | None:
        """Seconds after the first frame of the video; None for the packet that ends a stream."""
        return None if packet.pts is None else float(packet.pts * packet.time_base) - self._start_s

    def _copy(self, packet: Any) -> None:
        time_s = self._time(packet)
        if time_s is None or time_s < 0:
            return
        index = packet.stream.index
        stream = self._streams[index]
        if index not in self._encoded:
            offset = round(self._start_s / packet.time_base)
            packet.pts -= offset
            packet.dts = packet.pts  # the packets of all these codecs are in order of time
            packet.stream = stream
            self._output.mux(packet)
            return
        frames: list[Any] = []
        with self._reading():
            frames = packet.decode()
        for frame in frames:
            frame.pts -= round(self._start_s / frame.time_base)
            self._output.mux(stream.encode(frame))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.FFmpegError, DataError, OSError):
            self._packets = iter(())
