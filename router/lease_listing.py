"""The leases of every worker, asked from their engines: who holds which blocks, and for how long."""

from __future__ import annotations

import asyncio

from cluster.errors import TransferFailed
from cluster.membership import WorkerRecord
from cluster.wire import role_to_wire
from kv_transfer.kv_wire import lease_to_wire
from kv_transfer.source_client import SourceClient
from protos.baton.v1 import admin_pb2 as pb
from router.fleet import NO_SESSION, Fleet

_CALL_S = 2.0
_NO_SOURCE = "its engine keeps no leases that could be told: vLLM's own connector has none"


class LeaseListing:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def find(self, worker_id: str) -> list[pb.WorkerLeases]:
        """Of one worker, or with an empty name of all; asked at once, each with a deadline. Whom they cannot be asked
        of says why."""
        records = [record for record, _ in self._fleet.known if worker_id in ("", record.worker_id)]
        return list(await asyncio.gather(*map(self._ask, records)))

    async def _ask(self, record: WorkerRecord) -> pb.WorkerLeases:
        told = pb.WorkerLeases(worker_id=record.worker_id, role=role_to_wire(record.role), epoch=record.epoch)
        worker = self._fleet.dispatch.view.get(record.worker_id)
        if worker is None or not worker.source:
            told.unreachable = NO_SESSION if worker is None else _NO_SOURCE
            return told
        client = SourceClient(worker.source, "", _CALL_S, self._fleet.channels)
        try:
            told.leases.extend(map(lease_to_wire, await client.leases()))
        except TransferFailed as error:
            told.unreachable = str(error)
        finally:
            await client.close()
        return told
