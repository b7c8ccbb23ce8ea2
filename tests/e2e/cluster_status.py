"""The cluster's own counters, read over the admin API, in the sums that tests compare."""

from __future__ import annotations

import time
from dataclasses import dataclass

import grpc

from protos.baton.v1 import admin_pb2, admin_pb2_grpc, worker_pb2

_CALL_S = 10.0
_QUIET_S = 20.0


@dataclass(frozen=True)
class Totals:
    """Sums over all workers. Pulls are what readers landed; `sent` is what writers saw completed."""

    pulls: int
    blocks_pulled: int
    bytes_pulled: int
    pulls_failed: int
    blocks_sent: int
    bytes_sent: int
    recomputed: int
    leases_expired: int

    def __sub__(self, before: Totals) -> Totals:
        return Totals(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


class ClusterStatus:
    def __init__(self, channel: grpc.Channel) -> None:
        self._admin = admin_pb2_grpc.AdminStub(channel)

    def read(self) -> admin_pb2.StatusResponse:
        return self._admin.Status(admin_pb2.StatusRequest(), timeout=_CALL_S)

    def totals(self) -> Totals:
        counters = [worker.description.counters for worker in self.read().workers]
        transfers = [count for c in counters for count in c.transfers]
        landed = [count for count in transfers if count.outcome == "landed"]
        return Totals(
            pulls=sum(count.count for count in landed),
            blocks_pulled=sum(count.blocks for count in landed),
            bytes_pulled=sum(count.bytes for count in landed),
            pulls_failed=sum(count.count for count in transfers if count.outcome not in ("landed", "ahead")),
            blocks_sent=sum(c.blocks_sent for c in counters),
            bytes_sent=sum(c.bytes_sent for c in counters),
            recomputed=sum(c.recomputed_requests for c in counters),
            leases_expired=sum(c.leases_expired for c in counters),
        )

    def blocks_ahead(self) -> int:
        """Of the blocks that were pulled, those that were while their prompt was still being computed."""
        transfers = [count for worker in self.read().workers for count in worker.description.counters.transfers]
        return sum(count.blocks for count in transfers if count.outcome == "ahead")

    def wait_until_quiet(self) -> None:
        """Raises `AssertionError` that says what is left if the cluster does not come to rest."""
        give_up = time.monotonic() + _QUIET_S
        while left := left_in(self.read()):
            assert time.monotonic() < give_up, f"left behind: {left}"


def left_in(status: admin_pb2.StatusResponse) -> list[str]:
    """What a cluster at rest does not have, of this router's and of every worker's, in words."""
    left = [f"{status.router_id}: {status.router.in_flight} in flight"] if status.router.in_flight else []
    for worker in status.workers:
        described = worker.description
        amounts = {
            "running": described.load.running,
            "waiting": described.load.waiting,
            "queued prefill tokens": described.load.queued_prefill_tokens,
            "leases": described.load.leases,
            "pinned blocks": described.counters.pinned_blocks,
        }
        name = f"{worker_pb2.Role.Name(described.role)} {described.worker_id}"
        left += [f"{name}: {amount} {what}" for what, amount in amounts.items() if amount]
        left += [f"{name}: {worker.unreachable}"] if worker.unreachable else []
    return left
