"""A worker's output as it came over the wire, as an engine output; one that cannot be read fails its attempt."""

from __future__ import annotations

from cluster.engine import EngineOutput, FinishReason
from cluster.errors import InvalidRequest
from cluster.wire import output_from_wire
from protos.baton.v1 import worker_pb2


def decoded(wire: worker_pb2.Output) -> EngineOutput:
    try:
        return output_from_wire(wire)
    except InvalidRequest as error:
        return EngineOutput(wire.attempt_id, [], finish_reason=FinishReason.ERROR, error=str(error))
