"""`baton drain` and `baton undrain`: a worker gets nothing new, finishes what it has and ends; or takes work again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout, wait_of
from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, print_as
from deploy.document import Json

if TYPE_CHECKING:
    from deploy.cli.status_document import Worker as WorkerStatus

_LOOK_S = 0.5
_END_S = 45.0
"""After the deadline: what is left moves, leases end, the engine stops and the directory hears of it."""
_FREE_LOOKS = 4
"""So many answers in a row without the drain: a single one may come from a router that has not heard of it yet."""

Worker = Annotated[str, typer.Argument(metavar="WORKER", help="As `baton status` names it.", show_default=False)]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print what was done.")]


@command
def drain(  # noqa: PLR0913  each is an option of the command line
    worker: Worker,
    deadline: Annotated[float | None, wait_of(0.0, "What is open then moves. [default: the pool's drain_s]")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Give it work again, as `baton undrain` does.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is gone.")] = False,
    reason: Annotated[str, typer.Option(help="For whoever reads the status.")] = "",
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Output = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Let a worker finish and end it; exits 4 when the router knows no such worker, 6 when it takes work again while
    this waits, 7 when no router answers, 124 when it is not gone in time."""
    if undo:
        if wait or deadline is not None:
            raise Stop("--undo takes neither --wait nor --deadline: it acts at once", Exit.USAGE)
        return _undo(worker, endpoint, output, timeout)
    applied_s = _order(worker, deadline, reason, endpoint, timeout)
    if output is Format.TABLE:
        print(f"{worker} gets nothing new; what it still has in {applied_s:g} s moves to other workers, then it ends")
    if wait:
        _wait_until_gone(worker, applied_s, endpoint, timeout)
    if output is not Format.TABLE:
        return _print(worker, "gone" if wait else "ordered", applied_s, output)
    if wait:
        print(f"{worker} is gone")
    return Exit.OK


@command
def undrain(
    worker: Worker, endpoint: Endpoint = "127.0.0.1:9000", output: Output = Format.TABLE, timeout: Timeout = 5.0
) -> int:
    """Give a worker that drains work again; exits 4 when the router knows no such worker, 7 when no router answers."""
    return _undo(worker, endpoint, output, timeout)


def _order(worker: str, deadline_s: float | None, reason: str, endpoint: str, timeout_s: float) -> float:
    from deploy.cli.endpoint import ask_admin
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.DrainRequest(worker_id=worker, reason=reason, deadline_s=deadline_s)
    return ask_admin(endpoint, timeout_s, lambda admin: admin.Drain(asked, timeout=timeout_s)).deadline_s


def _undo(worker: str, endpoint: str, output: Format, timeout_s: float) -> int:
    from deploy.cli.endpoint import ask_admin
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.DrainRequest(worker_id=worker, undo=True)
    ask_admin(endpoint, timeout_s, lambda admin: admin.Drain(asked, timeout=timeout_s))
    if output is not Format.TABLE:
        return _print(worker, "undone", None, output)
    print(f"{worker} gets work again, unless it had ended by then: `baton status` shows it")
    return Exit.OK


def _print(worker: str, state: str, deadline_s: float | None, output: Format) -> Exit:
    """`deadline_s`: from the order on; None where there is none any more."""
    document: Json = {
        "apiVersion": "baton/v1", "kind": "Drain", "worker": worker, "state": state, "deadlineS": deadline_s
    }  # fmt: skip
    return print_as(document, [], output)


def _wait_until_gone(worker: str, deadline_s: float, endpoint: str, timeout_s: float) -> None:
    """Raises `Stop` when it takes work again, or is not gone in time."""
    give_up = time.monotonic() + deadline_s + _END_S
    free_looks = 0
    while (there := _find(worker, endpoint, timeout_s)) is not None:
        free_looks = 0 if there.drained else free_looks + 1
        if free_looks >= _FREE_LOOKS:
            raise Stop(f"{worker} takes work again: somebody has undone the drain", Exit.CONFLICT)
        if time.monotonic() >= give_up:
            raise Stop(f"{worker} is still there, {_END_S:g} s after its deadline; see its log", Exit.TIMED_OUT)
        time.sleep(_LOOK_S)


def _find(worker: str, endpoint: str, timeout_s: float) -> WorkerStatus | None:
    from deploy.cli.status_command import ask_status

    return next((each for each in ask_status(endpoint, timeout_s).workers if each.id == worker), None)
