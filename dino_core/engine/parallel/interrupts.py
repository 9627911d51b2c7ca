"""Letting the few moments pass in which an interrupt would leave a run in two states at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """SIGINT and SIGTERM that come during the block arrive at its end.

    Masking them would not do: Python runs handlers in the main thread whichever thread the system
    gave the signal to, and torch has threads of its own. Outside the main thread nothing is needed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    try:
        with contextlib.ExitStack() as handlers:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous in (None, signal.SIG_IGN):  # not Python's to change, or not wanted
                    continue
                handlers.callback(signal.signal, number, previous)
                signal.signal(number, lambda caught, frame: arrived.append(caught))
            yield
    finally:
        if arrived:
            signal.raise_signal(arrived[0])


@contextlib.contextmanager
def interrupts_collected() -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGHUP that would raise something are only put into the list.

    For several processes, which must stop at one and the same step: one that left at once would
    leave the others waiting.
    """
    arrived: list[int] = []
    with contextlib.ExitStack() as handlers:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and callable(previous := signal.getsignal(number)):
                    handlers.callback(signal.signal, number, previous)
                    signal.signal(number, lambda caught, frame: arrived.append(caught))
        yield arrived
