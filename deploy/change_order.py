"""How a command asks the process that owns a cluster of this machine for another configuration, and hears of the end.

The order is a file beside the cluster's record and a signal; the answer is another file. One order at a time, and only
as long as the process lives that gave it: what a dead one left is void, and the owner alone removes that.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.config import Config, parse_config
from cluster.errors import BatonError, DeadlineExceeded, StartFailed
from deploy.cluster_record import ClusterRecord, state_folder
from deploy.document import Json
from deploy.processes import started_at

_SIGNAL = signal.SIGUSR1
_LOOK_S = 0.1
_ANSWER_S = 10.0  # on top of the change's own deadline
_REMOVED_S = 2.0  # until an idle owner has removed what a dead sender left


class ChangeAsked(BaseException):
    """Raised by the signal where the owner waits; no error."""


class ChangeUnderWay(BatonError):
    """Somebody else's order is being carried out."""


@dataclass(frozen=True, slots=True)
class _Order:
    """`sender`, `started`: the process that waits for the answer; see `processes.started_at`."""

    number: str
    sender: int
    started: int
    deadline_s: float
    config: dict[str, Json]

    @property
    def void(self) -> bool:
        return started_at(self.sender) != self.started


# The command's side


def order_change(record: ClusterRecord, config: Config, deadline_s: float) -> None:
    """Returns once the cluster runs with `config`. Raises `ChangeUnderWay`, `StartFailed` with the owner's words, and
    `DeadlineExceeded` when it says nothing."""
    sender, named = os.getpid(), config.model_dump(mode="json", exclude_unset=True)
    order = _Order(secrets.token_hex(8), sender, started_at(sender) or 0, deadline_s, named)
    _place(record, order)
    try:
        _ring(record)
        _hear(record, order.number, deadline_s)
    finally:
        _remove(record.name)


def _place(record: ClusterRecord, order: _Order) -> None:
    path, give_up = _order_path(record.name), time.monotonic() + _REMOVED_S
    while True:
        with suppress(FileExistsError), path.open("x") as file:
            file.write(json.dumps(asdict(order)))
            return
        held = _read_order(record.name)
        if held is None or not held.void or time.monotonic() > give_up:
            raise ChangeUnderWay(f"a change of {record.name!r} is under way; if not, remove {path}")
        _ring(record)
        time.sleep(_LOOK_S)


def _ring(record: ClusterRecord) -> None:
    with suppress(ProcessLookupError):  # that it has ended is seen where its answer is waited for
        os.kill(record.pid, _SIGNAL)


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


def await_orders(name: str) -> None:
    """To be called before the cluster's record names this process: from then on a signal may come, and ends nothing.
    What was ordered of an owner before it is void."""
    signal.signal(_SIGNAL, signal.SIG_IGN)
    _remove(name)


@contextmanager
def changes_heard() -> Iterator[None]:
    """Inside the block the signal raises `ChangeAsked`; behind it the signal means nothing."""

    def ask(number: int, frame: object) -> None:
        signal.signal(_SIGNAL, signal.SIG_IGN)  # a second one must not break into what the first one leads to
        raise ChangeAsked

    signal.signal(_SIGNAL, ask)
    try:
        yield
    finally:
        signal.signal(_SIGNAL, signal.SIG_IGN)


def order_waits(name: str) -> bool:
    """Whether there is one that was not carried out: its signal may have come when nobody heard."""
    order = _read_order(name)
    return order is not None and not order.void and order.number != _answered(name)


def carry_out(name: str, change: Callable[[Config, float], None]) -> None:
    """What was ordered, with its deadline in seconds; the order's sender hears how it ended. What a dead one left is
    removed."""
    order = _read_order(name)
    if order is not None and order_waits(name):
        error = ""
        try:
            change(parse_config(order.config), order.deadline_s)
        except Exception as failed:  # the owner lives on, whatever a change ends with
            error = str(failed) or repr(failed)
        if _read_order(name) == order:  # or its sender waits no longer
            _write(_answer_path(name), {"number": order.number, "error": error})
    # Read again: a sender that has ended in order has removed its own, and another may have placed the next.
    if order is not None and order.void and _read_order(name) == order:
        _remove(name)


def _read_order(name: str) -> _Order | None:
    """None where there is none, or one is just being written."""
    try:
        return _Order(**json.loads(_order_path(name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _answered(name: str) -> str:
    """The number of the last order that was; empty without one."""
    try:
        return str(json.loads(_answer_path(name).read_text())["number"])
    except (OSError, ValueError, KeyError):
        return ""


def _remove(name: str) -> None:
    _order_path(name).unlink(missing_ok=True)
    _answer_path(name).unlink(missing_ok=True)


def _write(path: Path, answer: dict[str, str]) -> None:
    """In one piece, for whoever reads it."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(answer))
    draft.replace(path)


def _order_path(name: str) -> Path:
    return state_folder() / f"{name}.change"


def _answer_path(name: str) -> Path:
    return state_folder() / f"{name}.changed"
