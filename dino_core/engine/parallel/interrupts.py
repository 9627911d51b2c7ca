"""Defers SIGINT and SIGTERM while weights and counters are updated together."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """SIGINT and SIGTERM that arrive during the block take effect at its end.

    Masking the signals would not suffice: the system may deliver them to one of torch's threads,
    and Python then runs the handler in the main thread anyway. Outside of the main thread nothing
    needs to be done, because handlers never run there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    try:
        with contextlib.ExitStack() as handlers:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous in (
                    None,
                    signal.SIG_IGN,
                ):  # a handler that is not Python's, or an ignored signal
                    continue
                handlers.callback(signal.signal, number, previous)
                signal.signal(number, lambda caught, frame: arrived.append(caught))
            yield
    finally:
        # Raised again after the old handlers are back, so whatever they do happens now.
        if arrived:
            signal.raise_signal(arrived[0])


@contextlib.contextmanager
def interrupts_collected() -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGHUP are only collected, where they would otherwise raise an exception.

    Several processes must stop at the same step: one that left immediately would leave the others
    waiting in their next collective operation.

    Yields:
        The signals that have arrived so far.
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
