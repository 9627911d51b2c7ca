"""Videos written by us, read back by us and by OpenCV's own decoder."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from dino_core.errors import DataError
from dino_core.inference.video import VideoFile, probe_video, read_video


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


def test_odd_sizes_grow_by_one_pixel(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", (33, 47))
    assert next(read_video(path)).image.shape == (34, 48, 3)


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


def test_damaged_on_the_way(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", (48, 64), frames=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])  # its index, at the end, is gone
    with pytest.raises(DataError, match="cannot be decoded"):
        list(read_video(path))


def test_no_video_stream(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), "fltp", "mono")
        silence.sample_rate = 44_100
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="has no video stream"):
        probe_video(tmp_path / "a.mp4")
