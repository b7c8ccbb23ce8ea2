"""What a list can be narrowed to. Fixed sets are enums, so that a wrong value is answered with the right ones before
any router is asked. Imports nothing heavy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from router.seen import Seen


class PoolName(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class WorkerState(StrEnum):
    """As workers tell it; `UNREACHABLE` where one tells nothing."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


class RequestState(StrEnum):
    """`RUNNING`, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"


PoolFilter = Annotated[PoolName | None, typer.Option("--pool", help="Of this pool alone.")]
WorkerFilter = Annotated[str, typer.Option("--worker", metavar="WORKER", help="Of this worker alone.")]
StateFilter = Annotated[WorkerState | None, typer.Option("--state", help="In this state alone.")]
RequestStateFilter = Annotated[RequestState | None, typer.Option("--state", help="In this state alone.")]
EventFilter = Annotated[Seen | None, typer.Option("--event", help="Of this kind alone.")]
