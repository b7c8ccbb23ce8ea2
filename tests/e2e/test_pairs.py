"""Two prefill and two decode workers: each prefill hands over to each decode, token for token, over both transports."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc, worker_pb2
from protos.baton.v1 import inference_pb2 as pb
from tests.e2e.cluster_status import ClusterStatus
from tests.e2e.reference_engine import Prompt, reference
from tests.live_cluster import live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BLOCK, OUTPUT = 32, 12
AT_ONCE, MOST_BATCHES = 16, 8
START_S = 400.0  # five processes that each import for ten seconds and more
LENGTHS = (33, 64, 95, 300, 700)


class Pairs:
    def __init__(self, channel: grpc.Channel, transport: str) -> None:
        self.status = ClusterStatus(channel)
        self._inference = inference_pb2_grpc.InferenceStub(channel)
        self._admin = admin_pb2_grpc.AdminStub(channel)
        self._transport = transport

    def generate(self, request_id: str, prompt: Prompt) -> list[int]:
        sampling = pb.SamplingParameters(max_tokens=prompt.max_tokens, temperature=prompt.temperature)
        tokens = pb.TokenPrompt(ids=prompt.token_ids)
        request = pb.GenerateRequest(request_id=request_id, tokens=tokens, sampling=sampling)
        answer = self._inference.Generate(request, timeout=120)
        return [token for part in answer for delta in part.deltas for token in delta.token_ids]

    def workers_of(self, request_id: str) -> tuple[str, str]:
        """Between which the prompt's blocks moved."""
        told = self._admin.Explain(admin_pb2.ExplainRequest(request_id=request_id), timeout=10)
        assert [(rung.transport, rung.outcome) for rung in told.rungs] == [(self._transport, "landed")], told.rungs
        by_leg = {attempt.leg: attempt.worker_id for attempt in told.attempts}
        return by_leg["prefill"], by_leg["decode"]

    def blocks_moved(self) -> tuple[int, int]:
        """Sent by all prefill workers, and pulled over the transport by all decode workers."""
        workers = [worker.description for worker in self.status.read().workers]
        sent = sum(w.counters.blocks_sent for w in workers if w.role == worker_pb2.ROLE_PREFILL)
        landed = [
            transfer.blocks
            for worker in workers
            for transfer in worker.counters.transfers
            if (transfer.transport, transfer.outcome) == (self._transport, "landed")
        ]
        return sent, sum(landed)


@pytest.mark.parametrize(("transport", "section"), [("nixl", {}), ("grpc", {"prefer": "grpc", "forbid": ["nixl"]})])
def test_every_prefill_hands_over_to_every_decode(demo_model: Path, transport: str, section: dict[str, Any]) -> None:
    prompts = _prompts(AT_ONCE * MOST_BATCHES)
    with _pairs(demo_model, transport, section) as pairs, ThreadPoolExecutor(AT_ONCE) as pool:
        told: list[list[int]] = []
        used: set[tuple[str, str]] = set()
        while len(used) < 4 and len(told) < len(prompts):
            batch = range(len(told), len(told) + AT_ONCE)
            told += pool.map(lambda number: pairs.generate(f"pair-{number}", prompts[number]), batch)
            used |= {pairs.workers_of(f"pair-{number}") for number in batch}
        pairs.status.wait_until_quiet()
        totals, moved = pairs.status.totals(), pairs.blocks_moved()
    prefills, decodes = ({pair[side] for pair in used} for side in (0, 1))
    assert used == {(p, d) for p in prefills for d in decodes}
    assert (len(prefills), len(decodes)) == (2, 2)
    blocks = sum(-(-len(prompt.token_ids) // BLOCK) for prompt in prompts[: len(told)])
    assert moved == (blocks, blocks), "blocks moved in another way, or twice, or not at all"
    assert (totals.pulls_failed, totals.recomputed, totals.leases_expired) == (0, 0, 0)
    assert told == reference(demo_model, prompts[: len(told)])


@contextmanager
def _pairs(model: Path, transport: str, section: dict[str, Any]) -> Iterator[Pairs]:
    config = local_config(
        model,
        f"pairs-{transport}",
        model={"dtype": "float32"},
        prefill={"replicas": 2, "cpus_per_replica": 0.5},
        decode={"replicas": 2, "cpus_per_replica": 0.5},
        engine={"kv_cache_mib": 256, "start_deadline_s": START_S},
        kv_transfer=section,
        placement={"pick": "random"},  # by predicted time a slow pair may never be used
    )
    with live_cluster(config, START_S + 100) as running, grpc.insecure_channel(running.grpc) as channel:
        yield Pairs(channel, transport)


def _prompts(count: int) -> list[Prompt]:
    """No two share a prefix, so every block of each has to move."""
    draw = random.Random(22)
    lengths = (LENGTHS[i % len(LENGTHS)] for i in range(count))
    return [Prompt([draw.randrange(300, 4000) for _ in range(length)], OUTPUT) for length in lengths]
