"""A worker's output as it came over the wire, as an engine output; or, where nothing can be made of it, why."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.engine import EngineOutput
from cluster.errors import InvalidRequest, TicketRefused
from cluster.wire import output_from_wire
from protos.baton.v1 import worker_pb2
from router.strays import lease_of


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Its worker may still be at the attempt."""

    attempt_id: str
    reason: str


def decoded(wire: worker_pb2.Output) -> EngineOutput | Unreadable:
    """The ticket of an engine output, if there is one, can be read."""
    try:
        output = output_from_wire(wire)
        lease_of(output.ticket)
    except (InvalidRequest, TicketRefused) as error:
        return Unreadable(wire.attempt_id, str(error))
    return output
