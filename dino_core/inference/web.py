"""Downloads one image over http(s), within limits: the only network access of inference."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from dino_core.errors import ConfigError, DataError, DinoError
from dino_core.network import is_offline

MAX_BYTES = 200_000_000
TIMEOUT_S = 20.0
"""Longest silence of the server."""
DEADLINE_S = 40.0
"""Longest time of a whole download: a server that sends one byte per second is never silent."""

_CHUNK = 1 << 16
_LONGEST_REASON = 120
_SCHEMES = ("http", "https")
_KEPT_IN_PATHS = "%/:=&?~#+!$,;'@()*[]"


def check_url(url: str) -> str:
    """The address with spaces and letters beyond ASCII escaped, as a server expects it.

    Raises:
        ConfigError: the address is malformed.
    """
    wrong = "expected an address such as https://example.com/photo.jpg"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port  # both are parsed, and the port checked, only here
        (host or "").encode("idna")
    except ValueError as error:
        raise ConfigError(f"{url}: the address is malformed ({error})", wrong) from error
    if parts.scheme.lower() not in _SCHEMES or not host:
        raise ConfigError(f"{url}: the address has no host", wrong)
    if "@" in parts.netloc:
        raise ConfigError(
            f"{host}: addresses with a user name are not read", "download the file first"
        )
    if re.search(r"[\x00-\x20\x7f]", parts.netloc):
        raise ConfigError(f"{url}: the host contains a space or control character", wrong)
    path, query = (urllib.parse.quote(text, _KEPT_IN_PATHS) for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def reachable_url(url: str) -> str:
    """As `check_url`. Raises DataError, too, where the network is forbidden."""
    address = check_url(url)
    if is_offline():
        raise DataError(f"{url}: the network is forbidden", "unset DINO_OFFLINE to allow it")
    return address


def fetch(url: str) -> bytes:
    """Download the content of an http(s) URL.

    Raises:
        ConfigError: the address is malformed.
        DataError: the network is forbidden, the server is unreachable, refuses, redirects to
            another protocol or sends less than it announced, or the content is larger than
            MAX_BYTES or takes longer than DEADLINE_S.
    """
    address = reachable_url(url)
    download = _Download(url, address)
    thread = threading.Thread(target=download.run, name="dino-download", daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if thread.is_alive():
        download.disconnect()
        raise DataError(
            f"{url}: the download did not end within {DEADLINE_S:g} s",
            "download the file first, and give its path",
        )
    return download.result()


class _Download:
    """One download in a thread of its own, because only that bounds its whole time.

    A timeout of a socket counts each read alone, and looking up a host name has none at all.
    """

    def __init__(self, url: str, address: str) -> None:
        self._url = url
        self._address = address
        self._body = b""
        self._error: BaseException | None = None
        self._sockets: list[socket.socket] = []
        self._responses: list[http.client.HTTPResponse] = []
        self._deadline = time.monotonic() + DEADLINE_S

    def run(self) -> None:
        try:
            self._body = self._read()
        except BaseException as error:
            self._error = error
        finally:
            # urllib leaves a response open where a redirect is refused or malformed.
            for response in self._responses:
                response.close()
            for connected in self._sockets:
                connected.close()

    def disconnect(self) -> None:
        """End the connections, so that the thread, which may wait for the server, ends too."""
        for connected in list(self._sockets):
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def result(self) -> bytes:
        """The content, after `run` has ended. Errors as for `fetch`."""
        error = self._error
        if error is None:
            return self._body
        if isinstance(error, DinoError):
            raise error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            words = f"the server answered {error.code} {_short(error.reason)}"
        elif isinstance(error, urllib.error.URLError):
            words = f"cannot be reached ({_short(error.reason)})"
        elif isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            words = f"the download failed ({_short(error)})"
        else:
            raise error
        raise DataError(f"{self._url}: {words}") from error

    def _read(self) -> bytes:
        request = urllib.request.Request(self._address, headers={"User-Agent": "dino-detector"})
        body = bytearray()
        with _opener(self).open(request, timeout=TIMEOUT_S) as response:
            announced = response.headers.get("Content-Length") or ""
            expected = int(announced) if re.fullmatch(r"[0-9]{1,40}", announced) else None
            if expected is not None and expected > MAX_BYTES:
                raise self._too_large()
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise self._too_large()
                if time.monotonic() > self._deadline:  # `fetch` has given up
                    return b""
        if expected is not None and len(body) < expected and not response.chunked:
            raise DataError(
                f"{self._url}: the download ended after {len(body):,} of {expected:,} bytes",
                "try again",
            )
        return bytes(body)

    def connected(self, connection: socket.socket) -> None:
        """Remember a connection. Its copy stays valid when TLS takes the original over."""
        self._sockets.append(connection.dup())
        if time.monotonic() > self._deadline:
            self.disconnect()

    def answered(self, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        """Remember a response, to close it in any case."""
        self._responses.append(response)
        return response

    def check_redirect(self, target: str) -> None:
        """Raises DataError where a redirect leaves http and https or is malformed."""
        scheme = target.partition(":")[0].lower()
        if scheme not in _SCHEMES:
            raise DataError(
                f"{self._url}: the server redirects to {_short(target)}, and only http and https "
                "are followed"
            )
        try:
            check_url(target)
        except ConfigError as error:
            raise DataError(
                f"{self._url}: the server redirects to a malformed address ({_short(target)})"
            ) from error

    def _too_large(self) -> DataError:
        return DataError(
            f"{self._url}: larger than {MAX_BYTES:,} bytes",
            "download the file first, and give its path",
        )


def _opener(download: _Download) -> urllib.request.OpenerDirector:
    """Opens http and https only: urllib's own default also opens ftp:, file: and data:."""

    class Http(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            download.connected(self.sock)

        def getresponse(self) -> http.client.HTTPResponse:
            return download.answered(super().getresponse())

    # HTTPSConnection.connect calls the next class's connect and then starts TLS on its socket.
    class Https(http.client.HTTPSConnection, Http):
        pass

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Http, req)

    class HttpsHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Https, req)

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: Any) -> urllib.request.Request | None:
            args[1].close()  # urllib would read the redirect's own body, however long it is
            download.check_redirect(args[-1])
            return super().redirect_request(*args)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        HttpHandler(),
        HttpsHandler(),
        Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _short(reason: object) -> str:
    """One line of bounded length of what a server or library says."""
    text = " ".join(str(reason).split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
