"""A process of a test's own that does what it is told over a pipe, and steps on by itself meanwhile.

The parent's commands are the public methods of an object that the child makes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

from tests.two_hosts import move_in

_PAUSE_S = 0.001

# Forked from a process that has imported what takes seconds to import, and has started nothing: tests start many.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.kv_transfer.byte_reader"])


class Stepping(Protocol):
    def step(self) -> None:
        """Called about every millisecond."""
        ...


class CommandedProcess:
    """`make` runs in the child and must be importable there, as must its arguments. `namespace`: the host on which it
    lives, if not this one. `environment` is set before `make` runs."""

    def __init__(
        self,
        name: str,
        make: Callable[..., Stepping],
        arguments: tuple[Any, ...],
        environment: Mapping[str, str] | None = None,
        namespace: str = "",
    ) -> None:
        self._pipe, there = _CONTEXT.Pipe()
        target = (there, make, arguments, dict(environment or {}), namespace)
        self.process = _CONTEXT.Process(target=_run, args=target, name=name, daemon=True)
        self.process.start()
        there.close()

    def wait_until_made(self, within_s: float = 60.0) -> None:
        self._answer(within_s)

    def ask(self, command: str, *arguments: Any, within_s: float = 60.0) -> Any:
        self._pipe.send((command, arguments))
        return self._answer(within_s)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()

    def _answer(self, within_s: float) -> Any:
        assert self._pipe.poll(within_s), f"{self.process.name} does not answer"
        outcome, value = self._pipe.recv()
        assert outcome == "ok", value
        return value


def _run(
    pipe: Connection,
    make: Callable[..., Stepping],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    namespace: str,
) -> None:
    if namespace:
        move_in(namespace)
    os.environ.update(environment)
    try:
        made = make(*arguments)
        pipe.send(("ok", None))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise
    while True:
        made.step()
        if not pipe.poll(_PAUSE_S):
            continue
        try:
            command, parts = pipe.recv()
        except (EOFError, ConnectionResetError):
            return  # whoever commanded has gone
        try:
            pipe.send(("ok", getattr(made, command)(*parts)))
        except BaseException:
            pipe.send(("error", traceback.format_exc()))
