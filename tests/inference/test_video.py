"""Videos written by us, read back by us and by OpenCV's own decoder."""

from __future__ import annotations

import socket
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from dino_core.errors import DataError
from dino_core.inference.video import probe_video, read_video
from dino_core.inference.video_file import VideoFile


def scene(height: int, width: int, number: int) -> np.ndarray:
    """Dark, with a bright block in the top left corner that grows with the frame number."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[: height // 4, : 8 + 2 * number] = (250, 40, 40)
    return image


def write(path: Path, size_hw: tuple[int, int], frames: int = 10, fps: float = 25.0) -> Path:
    file = VideoFile(path, fps, size_hw)
    for number in range(frames):
        file.add(scene(*size_hw, number), number / fps)
    file.close()
    return path


@pytest.mark.parametrize("fps", [25.0, 30_000 / 1001, 12.5])
def test_size_rate_and_frames_survive(tmp_path: Path, fps: float) -> None:
    path = write(tmp_path / "a b.mp4", (48, 64), fps=fps)
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=1e-3)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 10
    good, bgr = capture.read()
    capture.release()
    assert good and bgr.shape == (48, 64, 3)
    assert np.abs(bgr[:, :, ::-1].astype(int) - scene(48, 64, 0)).mean() < 8
    info = probe_video(path)
    assert info.fps == pytest.approx(fps, rel=1e-3) and info.frames == 10
    frames = list(read_video(path))
    assert [f.number for f in frames] == list(range(10))
    assert [f.time_s for f in frames] == pytest.approx([n / fps for n in range(10)], abs=2e-3)
    assert np.abs(frames[9].image.astype(int) - scene(48, 64, 9)).mean() < 8


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", (33, 47))
    image = next(read_video(path)).image
    assert image.shape == (33, 47, 3)
    assert np.abs(image.astype(int) - scene(33, 47, 0)).mean() < 8


def test_frames_without_time_follow_the_rate(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "a.mp4", None, (16, 16))
    for number in range(5):
        file.add(scene(16, 16, number), None)
    file.close()
    times = [f.time_s for f in read_video(tmp_path / "a.mp4")]
    assert times == pytest.approx([n / 25 for n in range(5)], abs=1e-3)


def test_the_file_appears_when_it_is_closed(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "a.mp4", 25, (16, 16))
    file.add(scene(16, 16, 0), 0.0)
    assert not (tmp_path / "a.mp4").exists()
    file.abort()
    assert list(tmp_path.iterdir()) == []


def test_rotated_video_is_turned_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", (32, 64))
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4  # track header: its matrix stands at byte 40
    one = 1 << 16
    matrix = (0, one, 0, -one & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30)  # a phone held upright: 90 deg
    data[header + 40 : header + 76] = struct.pack(">9I", *matrix)
    path.write_bytes(data)
    image = next(read_video(path)).image
    capture = cv2.VideoCapture(str(path))  # turns by itself
    _, bgr = capture.read()
    capture.release()
    assert image.shape == (64, 32, 3) == bgr.shape
    assert np.abs(image.astype(int) - bgr[:, :, ::-1]).mean() < 8
    assert image[2, -2, 0] > 150  # the top left block is now at the top right


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and size in the file of every packet of the video stream."""
    with av.open(str(path)) as container:
        found = [(p.pos, p.size) for p in container.demux(container.streams.video[0])]
    return [(pos, size) for pos, size in found if size]


def read_all(path: Path) -> tuple[list[int], str]:
    """Numbers of the frames that can be read, and the error at the end."""
    numbers = []
    try:
        for frame in read_video(path):
            numbers.append(frame.number)
    except DataError as error:
        return numbers, error.message
    return numbers, ""


def encoded(path: Path, frames: int) -> Path:
    """A video whose header states its length, in any container, written without our code."""
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=25)
        stream.width, stream.height = 64, 48
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(48, 64, number % 20), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("damaged", [[20], [20, 41], [59]])
def test_a_damaged_packet_loses_only_its_frames(tmp_path: Path, damaged: list[int]) -> None:
    path = write(tmp_path / "a.mp4", (48, 64), frames=60)
    data = bytearray(path.read_bytes())
    for number in damaged:  # the length of its first unit is larger than the packet
        position = packets(path)[number][0]
        data[position : position + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    numbers, error = read_all(path)
    assert len(numbers) == 60 - len(damaged)
    # The encoder reorders frames, so the lost one is near the packet's place.
    lost = sorted(set(range(60)) - set(numbers))
    assert all(abs(a - b) <= 3 for a, b in zip(lost, damaged, strict=True))
    assert f"{60 - len(damaged)} frames were read of 60" in error


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_a_shortened_video_is_reported(tmp_path: Path, suffix: str) -> None:
    path = encoded(tmp_path / f"a.{suffix}", frames=100)
    numbers, error = read_all(path)
    assert (numbers, error) == (list(range(100)), "")
    position = packets(path)[50][0]
    path.write_bytes(path.read_bytes()[:position])
    numbers, error = read_all(path)
    assert 45 <= len(numbers) <= 50 and numbers == list(range(len(numbers)))
    assert "ends early: 100 frames are promised" in error
    assert f"{len(numbers)} frames were read" in error


@pytest.mark.parametrize(
    "name",
    ["12:30:00.mp4", "tcp:127.0.0.1:PORT?x.mp4", "concat:real.mp4|real.mp4", "caf\udce9.mp4"],
)
def test_a_name_is_never_a_protocol(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        path = Path(name.replace("PORT", str(listener.getsockname()[1])))
        write(Path("real.mp4"), (48, 64), frames=7)
        write(Path("other.mp4"), (48, 64), frames=3).rename(path)
        assert probe_video(path).frames == 3
        assert read_all(path) == ([0, 1, 2], "")
        with pytest.raises(TimeoutError):  # nobody has connected
            listener.accept()


def test_a_result_folder_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_all(write(Path("out:1/a.mp4"), (48, 64), frames=3)) == ([0, 1, 2], "")


def test_a_playlist_named_as_a_video_opens_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "real.mp4", (48, 64))
    playlists = (
        "ffconcat version 1.0\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nreal.mp4\n#EXT-X-ENDLIST\n",
    )
    for number, text in enumerate(playlists):
        (tmp_path / f"{number}.mp4").write_text(text)
        with pytest.raises(DataError, match="cannot be decoded"):
            probe_video(tmp_path / f"{number}.mp4")


def with_sound(path: Path, codec: str, seconds: float = 1.0) -> Path:
    """A video with a tone of 440 Hz."""
    silent = write(path.with_name("silent.mp4"), (48, 64), frames=round(25 * seconds))
    with av.open(str(silent)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        sound = new.add_stream(codec, rate=44_100, layout="mono")
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
        times = np.arange(round(44_100 * seconds)) / 44_100
        wave = (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 44_100, start, Fraction(1, 44_100)
            new.mux(sound.encode(frame))
        new.mux(sound.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [("a.mp4", "aac", "aac"), ("a.mov", "pcm_s16le", "aac"), ("a.mkv", "ac3", "ac3")],
)
def test_the_annotated_video_has_the_sound(
    tmp_path: Path, name: str, codec: str, kept: str
) -> None:
    source = with_sound(tmp_path / name, codec)
    copy = VideoFile(tmp_path / "copy.mp4", 25, (48, 64), source)
    for frame in read_video(source):
        copy.add(frame.image, frame.time_s)
    copy.close()
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", kept]
        samples = [f.to_ndarray() for f in container.decode(container.streams.audio[0])]
    wave = np.concatenate([s.reshape(1, -1) for s in samples], axis=1)[0].astype(np.float64)
    assert len(wave) == pytest.approx(44_100, rel=0.1)
    spectrum = np.abs(np.fft.rfft(wave))
    assert np.argmax(spectrum) * 44_100 / len(wave) == pytest.approx(440, abs=5)
    assert len(list(read_video(tmp_path / "copy.mp4"))) == 25


def test_damaged_on_the_way(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", (48, 64), frames=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])  # its index, at the end, is gone
    with pytest.raises(DataError, match="cannot be decoded"):
        list(read_video(path))


def test_no_video_stream(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), "fltp", "mono")
        silence.sample_rate = 44_100
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="has no video stream"):
        probe_video(tmp_path / "a.mp4")
