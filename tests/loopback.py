"""A file server on this machine that can show the faults of real file servers."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files` (path to bytes).

    Attributes:
        requests: Path and Range header of each request so far.
        sent: Bytes of bodies sent so far.
        cut_after: The connection is closed after this many bytes of a body, `cuts` times.
        pause_s: Pause between chunks of 64 kB.
        ranges: Whether range requests are answered with ranges.
        redirects: Path to the address that the client is redirected to.
        statuses: Path to the status code that is sent instead of the file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.cut_after, self.cuts = 0, 0
        self.pause_s = 0.0
        self.ranges = True
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        pass  # clients that were killed


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, path = (
            self.server,
            re.sub(r"^http://[^/]*", "", self.path),
        )  # a proxy receives the whole URL
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if path in server.redirects:
            self._head(302, 0, Location=server.redirects[path])
            return
        if path in server.statuses or path not in server.files:
            self._head(server.statuses.get(path, 404), 0)
            return
        body, start = server.files[path], 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(body):
                self._head(416, 0, **{"Content-Range": f"bytes */{len(body)}"})
                return
            place = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._head(206, len(body) - start, **{"Content-Range": place})
        else:
            self._head(200, len(body))
        self._send(body[start:])

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, body: bytes) -> None:
        limit = self.server.cut_after if self.server.cuts > 0 else len(body)
        for start in range(0, min(limit, len(body)), 1 << 16):
            piece = body[start : min(start + (1 << 16), limit)]
            self.wfile.write(piece)
            self.server.sent += len(piece)
            time.sleep(self.server.pause_s)
        if limit < len(body):
            self.server.cuts -= 1
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_server() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
