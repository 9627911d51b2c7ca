"""Downloads of images from a real server on this machine."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from dino_core.errors import DataError
from dino_core.inference import web
from dino_core.inference.sources import open_sources
from dino_core.network import is_offline


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "picture" not in self.path:
            self.send_error(404)
            return
        buffer = io.BytesIO()
        Image.new("RGB", (5, 3), (9, 9, 9)).save(buffer, "PNG")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(buffer.getvalue())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("DINO_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
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
