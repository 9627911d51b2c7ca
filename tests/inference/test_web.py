"""Downloads of images from a real server on this machine."""

from __future__ import annotations

import contextlib
import http.server
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from dino_core.errors import DataError
from dino_core.inference import web
from dino_core.inference.sources import open_sources
from dino_core.network import is_offline

PNG = io.BytesIO()
Image.new("RGB", (5, 3), (9, 9, 9)).save(PNG, "PNG")

OK = b"HTTP/1.0 200 OK\r\n"
RAW = {
    "/short": OK + b"Content-Length: 5000\r\n\r\n" + PNG.getvalue(),
    "/huge": OK + b"Content-Length: 1" + b"0" * 18 + b"\r\n\r\n" + PNG.getvalue(),
    "/announced": OK + b"Content-Length: 300000000\r\n\r\n",
    "/chunks": OK.replace(b"1.0", b"1.1") + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nab",
    "/ftp": b"HTTP/1.0 302 Found\r\nLocation: ftp://127.0.0.1:FTP/x.jpg\r\n\r\n",
    "/file": b"HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n",
    "/bad": b"HTTP/1.0 302 Found\r\nLocation: http://[::bad\r\n\r\n",
    "/loop": b"HTTP/1.0 302 Found\r\nLocation: /loop\r\n\r\n",
    "/reason": b"HTTP/1.0 404 \x1b[31mEVIL\x07\r\n\r\n",
    "/garbage": b"\x1b\x02" * 30_000 + b"\r\n\r\n",
}
"""Path to all bytes that the server sends for it."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path in RAW:
            self.wfile.write(RAW[self.path].replace(b"FTP", str(FTP_PORT[0]).encode()))
            return
        if self.path in ("/drip", "/dripping-headers"):
            self._drip()
            return
        if "picture" not in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PNG.getvalue())

    def _drip(self) -> None:
        """One byte at a time, with short pauses, until nobody listens."""
        self.wfile.write(OK + (b"\r\n" if self.path == "/drip" else b"X: "))
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

    def log_message(self, *args: Any) -> None:
        pass


FTP_PORT = [0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_pictures_and_errors_from_a_server(server: str) -> None:
    urls = [f"{server}/my%20picture.png?x=1", f"{server}/gone.png"]
    good, missing = open_sources(urls)
    assert good.image is not None and good.image.shape == (3, 5, 3)
    assert (good.name, good.source) == ("my picture.png", urls[0])
    assert missing.error is not None and "the server answered 404" in missing.error.message


def test_too_large_a_picture(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than 10 bytes"):
        web.fetch(f"{server}/picture.png")


def test_nobody_answers(server: str) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        web.fetch("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("DINO_OFFLINE", value)
    assert is_offline() is offline
    if offline:
        with pytest.raises(DataError, match="the network is forbidden"):
            web.fetch("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/short", r"the download ended after \d+ of 5,000 bytes"),
        ("/huge", "larger than 200,000,000 bytes"),
        ("/announced", "larger than 200,000,000 bytes"),
        ("/chunks", "the download failed"),
        ("/file", "302 .*not allowed"),
        ("/bad", "the download failed"),
        ("/loop", "302 .*infinite loop"),
    ],
)
def test_faults_of_servers_are_named(server: str, path: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        web.fetch(server + path)


def test_no_redirect_leaves_http(server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ftp:
        ftp.settimeout(0.2)
        FTP_PORT[0] = ftp.getsockname()[1]
        with pytest.raises(DataError, match=r"redirects to ftp://.*only http and https"):
            web.fetch(f"{server}/ftp")
        with pytest.raises(TimeoutError):  # nobody has connected
            ftp.accept()


@pytest.mark.parametrize("path", ["/reason", "/garbage"])
def test_what_a_server_says_is_short_and_has_no_control_characters(server: str, path: str) -> None:
    with pytest.raises(DataError) as raised:
        web.fetch(server + path)
    assert raised.value.message.isprintable() and "\\x1b" in raised.value.message
    assert len(raised.value.message) < 700


@pytest.mark.parametrize("path", ["/drip", "/dripping-headers"])
def test_a_download_has_a_deadline(server: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "DEADLINE_S", 0.5)  # without it, the loop of the server never ends
    with pytest.raises(DataError, match=r"did not end within 0\.5 s"):
        web.fetch(server + path)


def test_spaces_and_other_alphabets_in_addresses(server: str) -> None:
    assert web.fetch(f"{server}/picture ü.png?größe=1 2") == PNG.getvalue()
