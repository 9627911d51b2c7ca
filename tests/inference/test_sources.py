"""Sources are resolved and read; errors state what is wrong and where."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.errors import DataError
from dino_core.inference.sources import Frame, Sources, open_sources
from dino_core.inference.video import VideoFile


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, value, value)).save(path)
    return path


def video(path: Path, frames: int = 7) -> Path:
    file = VideoFile(path, 10.0, (16, 32))
    for number in range(frames):
        file.add(np.full((16, 32, 3), 30 * number, np.uint8), None)
    file.close()
    return path


def names(sources: Sources) -> list[str]:
    return [item.name for item in sources.items]


def test_folder_is_read_in_order_and_recursively_on_demand(tmp_path: Path) -> None:
    for name in ("b.png", "a ü.JPG", "sub/c.bmp", ".hidden.png", ".git/d.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    assert names(open_sources([tmp_path])) == ["a ü.JPG", "b.png"]
    recursive = open_sources([tmp_path], recursive=True)
    assert names(recursive) == ["a ü.JPG", "b.png", "sub/c.bmp"]
    assert recursive.total == 3
    frames = list(recursive)
    assert [f.index for f in frames] == [0, 1, 2]
    assert [f.source for f in frames] == [str(tmp_path / n) for n in names(recursive)]
    assert all(f.image is not None and f.image.shape == (4, 6, 3) for f in frames)


def test_mixed_sources_keep_their_order(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "z.png"), picture(tmp_path / "folder" / "a.png")
    clip = video(tmp_path / "clip.mp4")
    sources = open_sources([first, clip, str(tmp_path / "fold*" / "*.png"), second])
    assert names(sources) == ["z.png", "clip.mp4", "a.png", "a.png"]
    assert sources.total == 1 + 7 + 1 + 1
    frames = list(sources)
    assert [f.frame for f in frames] == [None, 0, 1, 2, 3, 4, 5, 6, None, None]


def test_a_name_with_glob_letters_is_a_file_first(tmp_path: Path) -> None:
    path = picture(tmp_path / "a[1].png")
    assert names(open_sources([path])) == ["a[1].png"]


def test_glob_names_are_relative_to_what_the_matches_share(tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png"):
        picture(tmp_path / name)
    assert names(open_sources([f"{tmp_path}/*/a.png"])) == ["x/a.png", "y/a.png"]
    assert names(open_sources([f"{tmp_path}/**/*.png"])) == ["x/a.png", "y/a.png"]


def test_list_file(tmp_path: Path) -> None:
    inside, outside = picture(tmp_path / "in side.png"), picture(tmp_path / "other" / "b.png")
    listing = tmp_path / "list.txt"
    listing.write_text(f"in side.png\n\n{outside}\n")
    assert [f.source for f in open_sources([listing])] == [str(inside), str(outside)]
    listing.write_text("in side.png\nin sid.png\n")
    with pytest.raises(DataError, match=r"list\.txt line 2: in sid\.png: no such file"):
        open_sources([listing])
    listing.write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        open_sources([listing])
    listing.write_text("-\n")
    with pytest.raises(DataError, match="line 1: '-' is not allowed"):
        open_sources([listing])
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        open_sources([listing])


def test_stdin_gives_a_frame_a_line_and_goes_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = picture(tmp_path / "a b.png")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/no.png\n\n{good}\n"))
    sources = open_sources(["-"])
    assert sources.total is None
    bad, fine = list(sources)
    assert bad.error is not None and "no such file" in bad.error.message
    assert bad.source == f"{tmp_path}/no.png"
    assert fine.image is not None and fine.source == str(good)


def test_unreadable_pictures_are_frames_with_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "c.png").touch()
    picture(tmp_path / "d.png")
    frames = list(open_sources([tmp_path]))
    assert [f.error is None for f in frames] == [True, False, False, True]
    assert "not an image" in str(frames[1].error)
    assert "empty" in str(frames[2].error)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_changes_nothing(tmp_path: Path, prefetch: int) -> None:
    for number in range(9):
        picture(tmp_path / f"{number}.png", 20 * number)
    frames = list(open_sources([tmp_path], prefetch=prefetch))
    assert [int(f.image[0, 0, 0]) for f in frames if f.image is not None] == [
        20 * n for n in range(9)
    ]


def test_done_pictures_are_left_out(tmp_path: Path) -> None:
    paths = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    clip = video(tmp_path / "c.mp4", frames=2)
    left = open_sources([tmp_path]).without({str(paths[0]), str(clip)})
    assert names(left) == ["b.png", "c.mp4"]


def test_video_frames(tmp_path: Path) -> None:
    clip = video(tmp_path / "clip.mp4")
    every = open_sources([clip], every=3)
    frames = list(every)
    assert every.total == len(frames) == 3
    assert [f.frame for f in frames] == [0, 3, 6]
    assert [f.time_s for f in frames] == pytest.approx([0, 0.3, 0.6], abs=1e-3)
    assert frames[0].fps == pytest.approx(10 / 3, rel=1e-3)
    assert [round(float(np.mean(f.image)) / 30) for f in frames] == [0, 3, 6]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"bad")
    iterator = iter(open_sources([tmp_path]))
    first = next(iterator)
    assert isinstance(first, Frame) and first.error is None


# --- what is wrong is said before anything is read ------------------------------


def test_missing_path_with_the_nearest_name(tmp_path: Path) -> None:
    picture(tmp_path / "holiday.jpg")
    with pytest.raises(DataError, match=r"holyday\.jpg: no such file.*did you mean 'holiday\.jpg'"):
        open_sources([tmp_path / "holyday.jpg"])
    with pytest.raises(DataError, match="no such file or folder"):
        open_sources([tmp_path / "none" / "at" / "all.jpg"])


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no image or video"):
        open_sources([tmp_path])
    picture(tmp_path / "sub" / "a.png")
    with pytest.raises(DataError, match="1 are in its subfolders: use --recursive"):
        open_sources([tmp_path])


def test_glob_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        open_sources([f"{tmp_path}/*.png"])
    (tmp_path / "a.md").touch()
    with pytest.raises(DataError, match=r"no image or video among 1 match$"):
        open_sources([f"{tmp_path}/*"])


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    picture(folder / "a.png")

    def scandir(path: str) -> None:  # root may read every folder, so the system says no here
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DataError, match=r"locked: the folder cannot be read \(Permission denied\)"):
        open_sources([folder])


def test_broken_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video at all")
    with pytest.raises(DataError, match=r"a\.mp4: the video cannot be decoded"):
        open_sources([tmp_path / "a.mp4"])


def test_url_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OFFLINE", "1")
    with pytest.raises(DataError, match="the network is forbidden"):
        open_sources(["https://example.com/a.jpg"])


def test_url_without_host() -> None:
    with pytest.raises(DataError, match="has no host"):
        open_sources(["https:///a.jpg"])


def test_webcam_that_is_not_there() -> None:
    sources = open_sources(["97"])
    assert sources.items[0].kind == "webcam" and sources.total is None
    (frame,) = sources
    assert frame.error is not None and "webcam 97: cannot be opened" in frame.error.message


def test_nothing_given() -> None:
    with pytest.raises(DataError, match="no source given"):
        open_sources([])
    with pytest.raises(DataError, match="every 0"):
        open_sources(["a.jpg"], every=0)


def test_a_path_that_cannot_be_one() -> None:
    with pytest.raises(DataError):
        open_sources(["a" * 5000])
