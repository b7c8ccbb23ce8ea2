"""How a command asks the process that owns a cluster of this machine for another configuration, and hears of the end.

The order is a file beside the cluster's record and a signal; the answer is another file. One order at a time.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.config import Config, parse_config
from cluster.errors import BatonError, DeadlineExceeded, StartFailed
from deploy.cluster_record import ClusterRecord, state_folder

_SIGNAL = signal.SIGUSR1
_LOOK_S = 0.1
_ANSWER_S = 10.0  # on top of the change's own deadline


class ChangeAsked(BaseException):
    """Raised by the signal where the owner waits; no error."""


class ChangeUnderWay(BatonError):
    """Somebody else's order is being carried out."""


# The command's side


def order_change(record: ClusterRecord, config: Config, deadline_s: float) -> None:
    """Returns once the cluster runs with `config`. Raises `ChangeUnderWay`, `StartFailed` with the owner's words, and
    `DeadlineExceeded` when it says nothing."""
    number = secrets.token_hex(8)
    order = {"number": number, "deadline_s": deadline_s, "config": config.model_dump(mode="json", exclude_unset=True)}
    path = _order_path(record.name)
    try:
        with path.open("x") as file:
            json.dump(order, file)
    except FileExistsError:
        raise ChangeUnderWay(f"a change of {record.name!r} is under way; if not, remove {path}") from None
    try:
        os.kill(record.pid, _SIGNAL)
        _hear(record, number, deadline_s)
    finally:
        path.unlink(missing_ok=True)
        _answer_path(record.name).unlink(missing_ok=True)


def _hear(record: ClusterRecord, number: str, deadline_s: float) -> None:
    give_up = time.monotonic() + deadline_s + _ANSWER_S
    while time.monotonic() < give_up:
        if not record.alive:
            raise StartFailed(f"cluster {record.name!r} ended meanwhile")
        with suppress(FileNotFoundError, ValueError):
            answer = json.loads(_answer_path(record.name).read_text())
            if answer["number"] == number:
                if answer["error"]:
                    raise StartFailed(answer["error"])
                return
        time.sleep(_LOOK_S)
    raise DeadlineExceeded(f"cluster {record.name!r} (pid {record.pid}) does not say what became of the change")


# The owner's side


@contextmanager
def changes_heard() -> Iterator[None]:
    """Inside the block the signal raises `ChangeAsked`; behind it the signal means nothing."""

    def ask(number: int, frame: object) -> None:
        raise ChangeAsked

    signal.signal(_SIGNAL, ask)
    try:
        yield
    finally:
        signal.signal(_SIGNAL, signal.SIG_IGN)


def order_waits(name: str) -> bool:
    """Whether there is one that was not carried out: its signal may have come when nobody heard."""
    try:
        order = json.loads(_order_path(name).read_text())
        return bool(order["number"] != _answered(name))
    except (OSError, ValueError, KeyError):
        return False


def carry_out(name: str, change: Callable[[Config, float], None]) -> None:
    """What was ordered, with its deadline in seconds; the order's giver hears how it ended."""
    try:
        order = json.loads(_order_path(name).read_text())
        error = ""
        try:
            change(parse_config(order["config"]), order["deadline_s"])
        except Exception as failed:  # the owner lives on, whatever a change ends with
            error = str(failed) or repr(failed)
        _write(_answer_path(name), {"number": order["number"], "error": error})
    except (OSError, ValueError):
        return  # who asked has gone


def _answered(name: str) -> str:
    """The number of the last order that was; empty without one."""
    try:
        return str(json.loads(_answer_path(name).read_text())["number"])
    except (OSError, ValueError, KeyError):
        return ""


def _write(path: Path, answer: dict[str, str]) -> None:
    """In one piece, for whoever reads it."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(answer))
    draft.replace(path)


def _order_path(name: str) -> Path:
    return state_folder() / f"{name}.change"


def _answer_path(name: str) -> Path:
    return state_folder() / f"{name}.changed"
