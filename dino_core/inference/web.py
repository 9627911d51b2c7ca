"""Downloads one image over http(s), within limits: the only network access of inference."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException

from dino_core.errors import DataError
from dino_core.network import is_offline

MAX_BYTES = 200_000_000
TIMEOUT_S = 20.0


def fetch(url: str) -> bytes:
    """Download the content of an http(s) URL.

    Raises:
        DataError: the network is forbidden, the server is unreachable or refuses, or the content
            is larger than MAX_BYTES.
    """
    if is_offline():
        raise DataError(f"{url}: the network is forbidden", "unset DINO_OFFLINE to allow it")
    request = urllib.request.Request(url, headers={"User-Agent": "dino-detector"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            body: bytes = response.read(MAX_BYTES + 1)  # one more, to notice that there is more
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DataError(f"{url}: cannot be reached ({error.reason})") from error
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(f"{url}: the download failed ({error})") from error
    if len(body) > MAX_BYTES:
        raise DataError(f"{url}: larger than {MAX_BYTES:,} bytes")
    return body
