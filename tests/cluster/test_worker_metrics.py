"""What a worker says of itself, as samples: the numbers of its description under the names of the table."""

from __future__ import annotations

from cluster.worker_metrics import worker_samples
from protos.baton.v1 import worker_pb2 as pb
from protos.baton.v1.kv_pb2 import TransferCount


def description() -> pb.WorkerDescription:
    return pb.WorkerDescription(
        worker_id="d1",
        role=pb.ROLE_DECODE,
        state=pb.WORKER_STATE_DRAINING,
        num_blocks=100,
        load=pb.Load(running=3, waiting=2, queued_prefill_tokens=64, kv_usage=0.5, leases=1),
        counters=pb.Counters(
            attempts_by_outcome={"stop": 4, "made up": 1, "made up too": 2},
            transfers=[
                TransferCount(transport="nixl", outcome="landed", count=3, blocks=7, bytes=700, seconds=0.5),
                TransferCount(transport="new", outcome="landed", count=1, blocks=1, bytes=10, seconds=0.1),
                TransferCount(transport="newer", outcome="landed", count=1, blocks=2, bytes=20, seconds=0.2),
            ],
            leases_offered=9,
            leases_expired=1,
        ),
    )


def values(of: pb.WorkerDescription) -> dict[tuple[str, ...], float]:
    return {
        (sample.metric.name.removeprefix("baton_"), *sample.labels): sample.value
        for sample in worker_samples(of)
        if isinstance(sample.value, float)
    }


def test_the_numbers_are_those_of_the_description() -> None:
    told = values(description())
    who = "decode", "d1"
    assert told["worker_running", *who] == 3.0
    assert told["worker_waiting", *who] == 2.0
    assert told["worker_queued_prompt_tokens", *who] == 64.0
    assert told["worker_kv_usage_ratio", *who] == 0.5
    assert told["kv_transfers_total", *who, "nixl", "landed"] == 3.0
    assert told["kv_transfer_blocks_total", *who, "nixl", "landed"] == 7.0
    assert told["kv_transfer_bytes_total", *who, "nixl", "landed"] == 700.0
    assert told["kv_transfer_seconds_total", *who, "nixl", "landed"] == 0.5
    assert told["worker_lease_events_total", *who, "offered"] == 9.0
    assert told["worker_lease_events_total", *who, "expired"] == 1.0


def test_exactly_one_state_is_the_workers() -> None:
    states = {key[-1]: value for key, value in values(description()).items() if key[0] == "worker_state"}
    assert states == {"starting": 0.0, "ready": 0.0, "draining": 1.0, "stalled": 0.0, "failed": 0.0}


def test_values_that_nobody_declared_are_told_together() -> None:
    told = values(description())
    assert told["worker_attempts_total", "decode", "d1", "other"] == 3.0
    assert told["kv_transfer_bytes_total", "decode", "d1", "other", "landed"] == 30.0


def test_every_sample_has_a_value_for_every_label() -> None:
    for sample in worker_samples(description()):
        assert len(sample.labels) == len(sample.metric.labels), sample
