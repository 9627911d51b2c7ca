"""Working ahead changes neither order nor errors, and stops when nobody listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dino_core.inference.prefetch import prefetched


def test_order_is_kept() -> None:
    assert list(prefetched(iter(range(100)), ahead=3)) == list(range(100))


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    iterator = prefetched(items(), ahead=5)
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(iterator)


def test_no_more_than_asked_for_is_made_ahead() -> None:
    made: list[int] = []
    first_taken = threading.Event()

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    iterator = prefetched(items(), ahead=2)
    next(iterator)
    first_taken.set()
    iterator.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "dino-prefetch":
            thread.join(timeout=10)
    assert len(made) <= 1 + 2 + 2  # taken, queued, and one on each side in the making
