"""Fetching from a real server on this machine: slow, cut off, wrong, gone, elsewhere."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import FileServer, running_server

from dino_core.checkpoints.published.fetch import fetch
from dino_core.errors import CheckpointError
from dino_core.files import sha256_of

BODY = random.Random(0).randbytes(3_000_000)
STALE = random.Random(1).randbytes(1_000_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with running_server() as server:
        server.files["/x.pth"] = BODY
        yield server


def wanted(path: Path) -> None:
    if path.read_bytes() != BODY:
        raise CheckpointError("other bytes")


def test_a_file_comes_whole_with_progress(server: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    target = tmp_path / "folder" / "x.pth"
    fetch(f"{server.url}/x.pth", target, wanted, lambda *state: seen.append(state))
    assert target.read_bytes() == BODY
    assert [p.name for p in target.parent.iterdir()] == ["x.pth"]
    assert seen[0] == ("fetching", 0, len(BODY)) and seen[-1] == ("fetching", len(BODY), len(BODY))


def test_a_break_off_is_mended_in_the_same_call(server: FileServer, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 1 << 20, 2  # whole pieces, so that nothing is sent twice
    fetch(f"{server.url}/x.pth", tmp_path / "x.pth", wanted)
    assert (tmp_path / "x.pth").read_bytes() == BODY
    assert [r for _, r in server.requests] == [None, "bytes=1048576-", "bytes=2097152-"]
    assert server.sent == len(BODY)


def begun(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "x.pth.part").write_bytes(content)
    return tmp_path / "x.pth"


def test_a_later_call_goes_on(server: FileServer, tmp_path: Path) -> None:
    fetch(f"{server.url}/x.pth", begun(tmp_path, BODY[:2_000_000]), wanted)
    assert (tmp_path / "x.pth").read_bytes() == BODY
    assert server.requests == [("/x.pth", "bytes=2000000-")] and server.sent == 1_000_000


def test_a_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    fetch(f"{server.url}/x.pth", begun(tmp_path, BODY[:2_000_000]), wanted)
    assert (tmp_path / "x.pth").read_bytes() == BODY
    server.cut_after, server.cuts = 1_000_000, 1
    fetch(f"{server.url}/x.pth", tmp_path / "y.pth", wanted)
    assert (tmp_path / "y.pth").read_bytes() == BODY


@pytest.mark.parametrize("part", [BODY, BODY + b"more"], ids=["all of it", "more than it"])
def test_all_had_come_before(server: FileServer, tmp_path: Path, part: bytes) -> None:
    fetch(f"{server.url}/x.pth", begun(tmp_path, part), wanted)
    assert (tmp_path / "x.pth").read_bytes() == BODY
    assert server.sent == (0 if part == BODY else len(BODY))


def test_what_was_begun_is_of_another_file(server: FileServer, tmp_path: Path) -> None:
    fetch(f"{server.url}/x.pth", begun(tmp_path, STALE), wanted)
    assert (tmp_path / "x.pth").read_bytes() == BODY
    assert [r for _, r in server.requests] == ["bytes=1000000-", None]


def test_wrong_bytes_are_refused_and_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.files["/x.pth"] = BODY[:-1] + b"!"
    with pytest.raises(CheckpointError, match="not the expected one: other bytes") as error:
        fetch(f"{server.url}/x.pth", tmp_path / "x.pth", wanted)
    assert "deleted" in error.value.hint and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_the_server_has_no_file(server: FileServer, tmp_path: Path, status: int) -> None:
    server.statuses["/x.pth"] = status
    with pytest.raises(CheckpointError, match=rf"x\.pth: the server answered {status}"):
        fetch(f"{server.url}/x.pth", tmp_path / "x.pth", wanted)
    assert not (tmp_path / "x.pth").exists()


def test_redirects_are_followed(server: FileServer, tmp_path: Path) -> None:
    server.redirects["/moved.pth"] = f"{server.url}/again.pth"
    server.redirects["/again.pth"] = "/x.pth"
    fetch(f"{server.url}/moved.pth", begun(tmp_path, BODY[:1_000_000]), wanted)
    assert (tmp_path / "x.pth").read_bytes() == BODY and server.sent == 2_000_000
    server.redirects["/circle.pth"] = "/circle.pth"
    with pytest.raises(CheckpointError, match="redirect"):
        fetch(f"{server.url}/circle.pth", tmp_path / "circle.pth", wanted)


def test_a_proxy_is_obeyed(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    script = (
        "import sys; from pathlib import Path;"
        "from dino_core.checkpoints.published.fetch import fetch;"
        "fetch('http://models.invalid/x.pth', Path(sys.argv[1]), lambda path: None)"
    )  # a new process: the HTTP library looks at the environment once
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.pth")], check=True)
    assert server.requests == [("http://models.invalid/x.pth", None)]
    assert (tmp_path / "x.pth").read_bytes() == BODY


def test_offline(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="DINO_OFFLINE forbids the network"):
        fetch(f"{server.url}/x.pth", tmp_path / "x.pth", wanted)
    assert server.requests == [] and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with running_server() as server:
        url = server.url
    part = begun(tmp_path, BODY[:1_000_000])
    with pytest.raises(CheckpointError, match=r"interrupted after 1\.0 MB") as error:
        fetch(f"{url}/x.pth", part, wanted)
    assert "resumes" in error.value.hint
    assert (tmp_path / "x.pth.part").stat().st_size == 1_000_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "x.pth.part").symlink_to("/dev/full")
    with pytest.raises(
        CheckpointError, match="the disk is full; the part downloaded so far is kept"
    ):
        fetch(f"{server.url}/x.pth", tmp_path / "x.pth", wanted)


SCRIPT = """
import sys
from pathlib import Path
from dino_core.checkpoints.published.fetch import fetch, one_at_a_time
target = Path(sys.argv[2])
with one_at_a_time(target.parent, lambda what, *_: print(what, flush=True)):
    if not target.exists():
        fetch(sys.argv[1], target, lambda path: None)
"""


def started(server: FileServer, target: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, f"{server.url}/x.pth", str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_half_way_and_repeated(server: FileServer, tmp_path: Path) -> None:
    server.files["/x.pth"] = big = random.Random(2).randbytes(6_000_000)
    server.pause_s = 0.05
    target, part = tmp_path / "x.pth", tmp_path / "x.pth.part"
    process = started(server, target)
    until(lambda: part.exists() and part.stat().st_size > 0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    had = part.stat().st_size
    assert 0 < had < len(big) and not target.exists()
    server.pause_s = 0
    again = started(server, target)
    again.communicate()
    assert again.returncode == 0 and target.read_bytes() == big
    assert server.requests[-1] == ("/x.pth", f"bytes={had}-")


def test_two_processes_fetch_once(server: FileServer, tmp_path: Path) -> None:
    server.pause_s = 0.02
    processes = [started(server, tmp_path / "x.pth") for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert len(server.requests) == 1 and server.sent == len(BODY)
    assert sha256_of(tmp_path / "x.pth") == sha256_of(write(tmp_path / "y", BODY))
    assert b"".join(said).count(b"waiting for another process") <= 1


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
