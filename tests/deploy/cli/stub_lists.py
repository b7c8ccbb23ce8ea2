"""What the stub router lists: a request that runs and one that failed, a lease that is read, a worker that came."""

from __future__ import annotations

from protos.baton.v1 import admin_pb2, kv_pb2, worker_pb2

PREFILL, DECODE = worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE
NOW = 1_700_000_000.0


def some_requests() -> list[admin_pb2.RequestSummary]:
    running = admin_pb2.RequestSummary(
        request_id="chatcmpl-2",
        tenant="acme",
        state="running",
        arrived_unix_s=NOW,
        duration_s=1.5,
        prompt_tokens=100,
        output_tokens=7,
        prefill_worker="p1",
        decode_worker="d1",
    )
    failed = admin_pb2.RequestSummary(
        request_id="chatcmpl-1",
        tenant="acme",
        state="failed",
        arrived_unix_s=NOW - 60,
        duration_s=0.5,
        prompt_tokens=10,
        cached_tokens=4,
        attempts=2,
        actual=admin_pb2.Timing(ttft_s=0.25, itl_s=0.01),
        prefill_worker="p1",
        error="worker p1 broke",
    )
    return [running, failed]


def some_leases() -> list[admin_pb2.WorkerLeases]:
    lease = kv_pb2.KvLease(lease="0a1b2c3d", state="moving", reader_id="d1/7", blocks=12, age_s=0.5, left_s=29.5)
    return [
        admin_pb2.WorkerLeases(worker_id="p1", role=PREFILL, epoch=2**60 + 1, leases=[lease]),
        admin_pb2.WorkerLeases(worker_id="d1", role=DECODE, epoch=7, unreachable="no answer"),
    ]


def some_events() -> list[admin_pb2.FleetEvent]:
    return [
        admin_pb2.FleetEvent(number=1, at_unix_s=NOW, kind="joined", worker_id="p1", role=PREFILL, reason="epoch 7"),
        admin_pb2.FleetEvent(
            number=2, at_unix_s=NOW + 1, kind="recovered", worker_id="d1", role=DECODE, reason="lost", request_id="r"
        ),
    ]


def some_caches() -> admin_pb2.CacheResponse:
    return admin_pb2.CacheResponse(
        router_id="router-1",
        requests=3,
        prompt_tokens=1000,
        cached_tokens=250,
        predicted_tokens=300,
        index_blocks=40,
        index_capacity=1_000_000,
        workers=[
            admin_pb2.WorkerCache(worker_id="p1", role=PREFILL, held_blocks=30, num_blocks=100, block_tokens=32),
            admin_pb2.WorkerCache(worker_id="d1", role=DECODE, held_blocks=10, num_blocks=100, block_tokens=32),
        ],
    )
