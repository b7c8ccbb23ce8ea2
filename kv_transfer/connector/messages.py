"""What the scheduler half and the worker half of the connector tell each other, through vLLM, once a step."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kv_transfer.fingerprint import Fingerprint
from kv_transfer.mover import PullJob, PullResult
from kv_transfer.ticket import Ticket
from kv_transfer.transport import Endpoint


@dataclass(frozen=True)
class StepOrders(KVConnectorMetadata):
    """To every rank. `serve_s`: for how long peers may want to read from here, seconds; None: as ordered before."""

    pulls: tuple[PullJob, ...] = ()
    releases: tuple[Ticket, ...] = ()
    serve_s: float | None = None


@dataclass(frozen=True)
class StepReport(KVConnectorWorkerMetadata):
    """From one rank, or from several: the pulls that ended."""

    results: tuple[tuple[int, PullResult], ...]  # (rank, result)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepReport:
        assert isinstance(other, StepReport)
        return StepReport(self.results + other.results)


@dataclass(frozen=True)
class RankEndpoint(KVConnectorHandshakeMetadata):
    """Once, after the KV cache was made."""

    endpoint: Endpoint
    fingerprint: Fingerprint
