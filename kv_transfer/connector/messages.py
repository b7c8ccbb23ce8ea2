"""What the scheduler half and the worker half of the connector tell each other, through vLLM, once a step."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kv_transfer.fingerprint import Fingerprint
from kv_transfer.follower import FollowJob
from kv_transfer.mover import PullJob, PullResult
from kv_transfer.ticket import Ticket
from kv_transfer.transport import Endpoint


@dataclass(frozen=True)
class StepOrders(KVConnectorMetadata):
    """To every rank. `follows`: prompts in progress to pull, `prompts_done`: those of them that are finished, by
    request. `serve_s`: for how long peers may want to read from here, seconds; None: as ordered before. `step`: to be
    reported when this step has run; 0: not to be."""

    pulls: tuple[PullJob, ...] = ()
    releases: tuple[Ticket, ...] = ()
    serve_s: float | None = None
    follows: tuple[FollowJob, ...] = ()
    prompts_done: tuple[str, ...] = ()
    step: int = 0


@dataclass(frozen=True)
class StepReport(KVConnectorWorkerMetadata):
    """From one rank, or from several: the pulls that ended, and the step that has run, when that was asked."""

    results: tuple[tuple[int, PullResult], ...]  # (rank, result)
    step: int = 0

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepReport:
        assert isinstance(other, StepReport)
        return StepReport(self.results + other.results, min(self.step, other.step))


@dataclass(frozen=True)
class RankEndpoint(KVConnectorHandshakeMetadata):
    """Once, after the KV cache was made."""

    endpoint: Endpoint
    fingerprint: Fingerprint
