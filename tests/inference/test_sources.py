"""Sources are resolved and read; errors state what is wrong and where."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.errors import ConfigError, DataError
from dino_core.inference.sources import Frame, Sources, open_sources
from dino_core.inference.video_file import VideoFile
from dino_core.processing.preprocess import load_image


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
    listing.write_text("in sid.png\nin side.png\n-\n")
    missing, fine, refused = open_sources([listing])
    assert missing.error is not None
    assert "list.txt line 1: in sid.png: no such file" in missing.error.message
    assert fine.source == str(inside) and fine.image is not None
    assert refused.error is not None and "line 3: '-' is not allowed" in refused.error.message
    listing.write_bytes(b"\xff\xfe" + "in side.png\r\n".encode("utf-16-le"))
    assert [f.error for f in open_sources([listing])] == [None]
    listing.write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
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
    picture(tmp_path / "b.png")
    broken, fine = open_sources([tmp_path])
    assert broken.error is not None
    assert "a.mp4: the video cannot be decoded" in broken.error.message
    assert fine.image is not None


def test_url_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OFFLINE", "1")
    with pytest.raises(DataError, match="the network is forbidden"):
        open_sources(["https://example.com/a.jpg"])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https:///a.jpg", "has no host"),
        ("http:/example.com/a.jpg", "has no host"),
        ("http://[::1/x.jpg", "malformed"),
        ("http://example.com:99999/x.jpg", "malformed"),
        ("http://example.com:port/x.jpg", "malformed"),
        ("http://a..b/x.jpg", "malformed"),
        ("http://exa mple.com/x.jpg", "a space or control character"),
        ("http://me:secret@example.com/x.jpg", "user name"),
    ],
)
def test_malformed_addresses_are_wrong_usage(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        open_sources([url])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("rtsp://127.0.0.1:9/cam", "rtsp streams are not read.*ffmpeg -i"),
        ("RTMP://host/live", "rtmp streams are not read"),
        ("ftp://host/a.jpg", "ftp addresses are not read, only http and https"),
        ("s3://bucket/a.jpg", "s3 addresses are not read"),
        ("file:///data/my%20photo.jpg", "give the path: /data/my photo.jpg"),
    ],
)
def test_other_addresses_are_named_with_the_way_out(address: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_sources([address])


def test_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    (tmp_path / "data.tar.gz").write_bytes(b"")
    for name in ("data.zip", "data.tar.gz"):
        (frame,) = open_sources([tmp_path / name])
        assert frame.error is not None and "is an archive" in frame.error.message
        assert "unpack it first" in frame.error.hint
    with pytest.raises(DataError, match=r"contains the archive data\.tar\.gz: unpack it first"):
        open_sources([tmp_path])


def test_one_bad_file_does_not_stop_the_rest(tmp_path: Path) -> None:
    good = picture(tmp_path / "c.png")
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    (tmp_path / "d.mp4").symlink_to("gone.mp4")
    os.mkfifo(tmp_path / "e.png")
    os.mkfifo(tmp_path / "f.mp4")
    (tmp_path / "g.png").symlink_to("/dev/zero")
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/h\xe9.png")
    Path(latin).write_bytes(good.read_bytes())
    for given in ([tmp_path], [f"{tmp_path}/*"], sorted(tmp_path.iterdir())):
        frames = list(open_sources(given))
        reasons = {f.name: f.error.message if f.error else "" for f in frames}
        assert list(reasons.values())[2] == list(reasons.values())[7] == ""
        assert "the link leads to gone.jpg, which does not exist" in reasons["a.jpg"]
        assert "levels of symbolic links" in reasons["b.jpg"]
        assert "gone.mp4" in reasons["d.mp4"]
        for name, kind in (
            ("e.png", "a named pipe"),
            ("f.mp4", "a named pipe"),
            ("g.png", "a dev"),
        ):
            assert f"not a regular file but {kind}" in reasons[name]


def test_lists_and_pipes_with_names_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(picture(tmp_path / "a.png").read_bytes())
    (tmp_path / "list.txt").write_bytes(name + b"\n")
    (frame,) = open_sources([tmp_path / "list.txt"])
    assert frame.image is not None and os.fsencode(frame.source) == name
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(name + b"\nzero\0byte\n")))
    fine, bad = open_sources(["-"])
    assert fine.image is not None and os.fsencode(fine.source) == name
    assert bad.error is not None and "zero\\x00byte: no such file" in bad.error.message


def test_a_list_that_is_a_pipe_or_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        with pytest.raises(DataError, match="not a regular file"):
            open_sources([tmp_path / name])


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_stdin_without_a_path(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    with pytest.raises(DataError, match="no path was given"):
        list(open_sources(["-"]))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="it is closed"):
        list(open_sources(["-"]))


def test_stdin_without_an_end_of_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/zero", encoding="utf-8") as zeros:
        monkeypatch.setattr("sys.stdin", zeros)
        with pytest.raises(DataError, match="a line is longer than 65,536 bytes"):
            list(open_sources(["-"]))


def test_links_between_folders_are_followed_once(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    (tmp_path / "in" / "again").symlink_to("sub")
    picture(tmp_path / "other" / "b.png")
    (tmp_path / "in" / "far").symlink_to("../other")
    (tmp_path / "other" / "back").symlink_to("../in")
    found = open_sources([tmp_path / "in"], recursive=True)
    assert names(found) == ["far/b.png", "sub/a.png"]


def test_an_unreadable_folder_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "z.png")
    picture(tmp_path / "locked" / "a.png")
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    locked, fine = open_sources([tmp_path], recursive=True)
    assert locked.error is not None and "the folder cannot be read" in locked.error.message
    assert fine.image is not None


@pytest.mark.parametrize("source", ["97", "/dev/video97"])
def test_webcam_that_is_not_there(source: str) -> None:
    sources = open_sources([source])
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


def test_a_folder_of_heic_files_names_the_remedy(tmp_path: Path) -> None:
    for name in ("a.HEIC", "b.heic"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match="contains no image or video") as error:
        open_sources([tmp_path])
    assert error.value.hint.startswith("it contains 2 HEIC files: convert HEIC to JPEG first")
    with pytest.raises(DataError, match="an image in HEIC format, which is not read"):
        load_image(tmp_path / "a.HEIC")
