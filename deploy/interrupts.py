"""Signals that end a command, for blocks that own processes: what they started must end with them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def interruptible() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt` the way Ctrl-C does. For the main thread."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    return _meeting(interrupt)


def uninterruptible() -> AbstractContextManager[None]:
    """A second Ctrl-C must not leave half of it behind. For the main thread."""
    return _meeting(signal.SIG_IGN)


@contextmanager
def _meeting(handler: Callable[[int, object], None] | signal.Handlers) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
