"""An iterator that a thread runs ahead, so that reading images overlaps with the network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# Within this time the thread notices that its consumer has stopped.
_POLL_S = 0.1


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetched(items: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """Yield the same items in the same order, with up to `ahead` of them made in advance.

    An exception of `items` is raised here, after the items before it. Closing this iterator stops
    the thread; a read that is under way ends first, but nobody waits for it.

    Args:
        items: What to yield; from now on only the thread may use it.
        ahead: Items kept ready, at least 1. One more may be in the making.
    """
    ready: queue.Queue[_Item[T] | _End] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(entry: _Item[T] | _End) -> None:
        # A blocking put would never return once nobody takes items, so `stop` is looked at between.
        while not stop.is_set():
            try:
                ready.put(entry, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                put(_Item(item))
                if stop.is_set():
                    break
        # Also KeyboardInterrupt and SystemExit: an exception that ended in this thread would be
        # lost, and the consumer would wait forever.
        except BaseException as raised:
            error = raised
        # Through the same queue, so it arrives behind the items that were made before it.
        put(_End(error))

    # A daemon, since a read that blocks forever (stdin, webcam) must not keep the process alive.
    thread = threading.Thread(target=work, name="dino-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            entry = ready.get()
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                return
            yield entry.value
    finally:
        # Reached on every way out: the end, an error, or `close()` of the generator.
        stop.set()
