"""Damaged copies of sound files, and the loop that feeds them to a reader.

Each fuzzer runs for any time: `python tests/fuzz/fuzz_json.py --seconds 600 --seed 3`. It ends with
exit code 1 if the reader raised anything but a DataError; the input is left in the working folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from dino_core.errors import DataError

Reader = Callable[[bytes, Path], object]
_INTERESTING = (b"", b"\0", b"\xff", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\n", b" ")
_SLOW_S = 5.0


def damaged(seed: bytes, tokens: Sequence[bytes], rng: random.Random) -> bytes:
    """A copy of `seed` with one to eight changes: bytes, pieces, and tokens of the format."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at : at + length] = rng.choice(_INTERESTING) * rng.choice((1, 1, 4))
        elif kind == 3:
            source = rng.randrange(len(data) + 1)
            data[at:at] = data[source : source + length]
        elif kind == 4:
            del data[at:]
        else:
            data[at : at + (length if kind == 5 else 0)] = rng.choice(tokens)
    return bytes(data)


def with_value_replaced(
    seed: bytes, words: Sequence[bytes], tokens: Sequence[bytes], rng: random.Random
) -> bytes:
    """A copy in which one of the words that stands in the seed is a token instead."""
    known = [word for word in words if word in seed]
    if not known:
        return damaged(seed, tokens, rng)
    word = rng.choice(known)
    at = rng.choice([i for i in range(len(seed)) if seed.startswith(word, i)])
    return seed[:at] + rng.choice(tokens) + seed[at + len(word) :]


def fuzz(
    seeds: Sequence[bytes],
    read: Reader,
    *,
    tokens: Sequence[bytes] = _INTERESTING,
    words: Sequence[bytes] = (),
    seconds: float = 5.0,
    seed: int = 0,
) -> list[str]:
    """Feed damaged copies of `seeds` to `read` until the time is over.

    Args:
        seeds: Sound files.
        read: Takes the content and a folder to write it into, and reads it.
        tokens: Pieces of the format to insert.
        words: Pieces of the seeds that are replaced by tokens, e.g. its numbers.
        seconds: How long.
        seed: Random seed.

    Returns: One line for each kind of error that is no DataError, and for an input that took long.
    """
    rng = random.Random(seed)
    found: dict[str, str] = {}
    end, count = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as name:
        while time.monotonic() < end:
            chosen = rng.choice(seeds)
            data = (
                with_value_replaced(chosen, words, tokens, rng)
                if rng.random() < 0.5
                else damaged(chosen, tokens, rng)
            )
            began = time.monotonic()
            try:
                read(data, Path(name))
            except DataError:
                pass
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
                found.setdefault(kind, f"{kind}: {error!s:.200}; input {data[:2000]!r}")
            if time.monotonic() - began > _SLOW_S:
                found.setdefault("slow", f"took more than {_SLOW_S} s: {data[:2000]!r}")
            count += 1
    print(f"{count} inputs, {len(found)} kinds of error", file=sys.stderr)
    return list(found.values())


def main(run: Callable[[float, int], list[str]]) -> None:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="How long; default: 60.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed; default: 0.")
    options = parser.parse_args()
    found = run(options.seconds, options.seed)
    print("\n".join(found))
    raise SystemExit(1 if found else 0)
