"""Two prefill and two decode workers: each prefill hands over to each decode, token for token, over both transports."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.baton.v1 import inference_pb2 as pb
from protos.baton.v1 import inference_pb2_grpc, worker_pb2
from tests.e2e.cluster_status import ClusterStatus
from tests.e2e.reference_engine import Prompt, reference
from tests.live_cluster import live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.timeout(580)]

BLOCK, OUTPUT = 32, 12
# Ties between idle workers are drawn: that one of four pairs stays out 64 times has a chance of four in 10^8.
MOST_REQUESTS = 64
LENGTHS = (33, 64, 95, 300, 700)


@dataclass(frozen=True)
class Moved:
    """What each worker has sent or pulled so far, in blocks, by worker id; pulls of one transport only."""

    sent: dict[str, int]
    pulled: dict[str, int]


class Pairs:
    """Requests one at a time, so that what the counters gained belongs to one hand-over."""

    def __init__(self, channel: grpc.Channel, transport: str) -> None:
        self.status = ClusterStatus(channel)
        self._stub = inference_pb2_grpc.InferenceStub(channel)
        self._transport = transport

    def generate(self, prompt: Prompt) -> tuple[list[int], tuple[str, str]]:
        """The tokens, and the ids of the workers between which the prompt's blocks moved."""
        before = self._moved()
        request = pb.GenerateRequest(
            tokens=pb.TokenPrompt(ids=prompt.token_ids), sampling=pb.SamplingParameters(max_tokens=prompt.max_tokens)
        )
        tokens = [t for part in self._stub.Generate(request, timeout=120) for d in part.deltas for t in d.token_ids]
        self.status.wait_until_quiet()
        after, blocks = self._moved(), -(-len(prompt.token_ids) // BLOCK)
        return tokens, (_gained(before.sent, after.sent, blocks), _gained(before.pulled, after.pulled, blocks))

    def _moved(self) -> Moved:
        workers = [worker.description for worker in self.status.read().workers]
        return Moved(
            sent={w.worker_id: w.counters.blocks_sent for w in workers if w.role == worker_pb2.ROLE_PREFILL},
            pulled={w.worker_id: self._landed(w.counters) for w in workers if w.role == worker_pb2.ROLE_DECODE},
        )

    def _landed(self, counters: worker_pb2.Counters) -> int:
        ours = [t for t in counters.transfers if (t.transport, t.outcome) == (self._transport, "landed")]
        return sum(t.blocks for t in ours)


@pytest.mark.parametrize(("transport", "section"), [("nixl", {}), ("grpc", {"forbid": ["nixl"]})])
def test_every_prefill_hands_over_to_every_decode(demo_model: Path, transport: str, section: dict[str, Any]) -> None:
    prompts = _prompts(MOST_REQUESTS)
    with _pairs(demo_model, transport, section) as pairs:
        told: list[list[int]] = []
        used: set[tuple[str, str]] = set()
        for prompt in prompts:
            tokens, pair = pairs.generate(prompt)
            told.append(tokens)
            used.add(pair)
            if len(used) == 4:
                break
        totals = pairs.status.totals()
    prefills, decodes = ({pair[side] for pair in used} for side in (0, 1))
    assert used == {(p, d) for p in prefills for d in decodes}
    assert (len(prefills), len(decodes)) == (2, 2)
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
        engine={"kv_cache_mib": 256},
        kv_transfer=section,
    )
    with live_cluster(config) as running, grpc.insecure_channel(running.grpc) as channel:
        yield Pairs(channel, transport)


def _prompts(count: int) -> list[Prompt]:
    """No two share a prefix, so every block of each has to move."""
    draw = random.Random(22)
    lengths = (LENGTHS[i % len(LENGTHS)] for i in range(count))
    return [Prompt([draw.randrange(300, 4000) for _ in range(length)], OUTPUT) for length in lengths]


def _gained(before: dict[str, int], after: dict[str, int], blocks: int) -> str:
    """The only worker whose count has grown, by just so many."""
    gains = {worker_id: count - before[worker_id] for worker_id, count in after.items() if count != before[worker_id]}
    assert list(gains.values()) == [blocks], f"{blocks} blocks were to move, gained: {gains}"
    return next(iter(gains))
