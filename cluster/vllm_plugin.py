"""Runs first in every process of a vLLM engine (entry point `vllm.general_plugins`): ends it with its owner, and
sends what it says to its owner.

The owner names itself in two environment variables before it starts the engine; a process that finds none of them, or
is the owner itself, is left alone. Imports nothing heavy: it is loaded in routers too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time

OWNER_VARIABLE = "BATON_ENGINE_OWNER"  # pid of the process that owns the engine
VOICE_VARIABLE = "BATON_ENGINE_VOICE"  # named pipe that takes the engine's stdout and stderr
_GRACE_S = 5.0


def register() -> None:
    owner = int(os.environ.get(OWNER_VARIABLE, "0"))
    if owner in (0, os.getpid()):
        return
    threading.Thread(target=_end_with, args=(owner,), name="baton-owner-watch", daemon=True).start()
    if voice := os.environ.get(VOICE_VARIABLE):
        _speak_to(voice)


def _end_with(owner: int) -> None:
    # A pidfd becomes readable when its process ends, however it ends; unlike PR_SET_PDEATHSIG it does not fire when
    # merely the thread that started us ends.
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(owner)
        select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def _speak_to(pipe: str) -> None:
    # Without a reader (the owner has stopped listening) the open fails at once, and we keep the outputs that we have.
    with contextlib.suppress(OSError):
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(descriptor, True)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
