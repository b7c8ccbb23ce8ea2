"""Two prefill and two decode workers with real engines: each prefill hands over to each decode, token for token, over
both transports; and whichever dies at whatever moment, no stream says anything else."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc, worker_pb2
from protos.baton.v1 import inference_pb2 as pb
from tests.e2e.cluster_status import ClusterStatus
from tests.e2e.reference_engine import Prompt, reference
from tests.listening import listener
from tests.live_cluster import live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

BLOCK, OUTPUT = 32, 12
AT_ONCE, MOST_BATCHES = 16, 8
LONG_OUTPUT, FEW, WAIT_S = 240, 5, 120
START_S = 400.0  # five processes that each import for ten seconds and more
LENGTHS = (33, 64, 95, 300, 700)
LONG_LENGTHS = (1_500, 2_500, 300, 2_000)


class Pairs:
    def __init__(self, owner: int, channel: grpc.Channel, transport: str) -> None:
        self.owner = owner
        self.status = ClusterStatus(channel)
        self._inference = inference_pb2_grpc.InferenceStub(channel)
        self._admin = admin_pb2_grpc.AdminStub(channel)
        self._transport = transport

    def generate(self, request_id: str, prompt: Prompt) -> list[int]:
        return list(self.stream(request_id, prompt))

    def stream(self, request_id: str, prompt: Prompt) -> Iterator[int]:
        sampling = pb.SamplingParameters(max_tokens=prompt.max_tokens, temperature=prompt.temperature)
        tokens = pb.TokenPrompt(ids=prompt.token_ids)
        request = pb.GenerateRequest(request_id=request_id, tokens=tokens, sampling=sampling)
        for part in self._inference.Generate(request, timeout=120):
            for delta in part.deltas:
                yield from delta.token_ids

    def workers_of(self, request_id: str) -> tuple[str, str]:
        """Between which the prompt's blocks moved."""
        told = self.explain(request_id)
        assert [(rung.transport, rung.outcome) for rung in told.rungs] == [(self._transport, "landed")], told
        by_leg = {attempt.leg: attempt.worker_id for attempt in told.attempts}
        return by_leg["prefill"], by_leg["decode"]

    def explain(self, request_id: str) -> admin_pb2.Explanation:
        told: admin_pb2.Explanation = self._admin.Explain(admin_pb2.ExplainRequest(request_id=request_id), timeout=10)
        return told

    def endings(self, request_ids: Iterable[str], worker_id: str) -> set[str]:
        """How the attempts of these requests on that worker ended."""
        told = [attempt for request_id in request_ids for attempt in self.explain(request_id).attempts]
        return {attempt.outcome for attempt in told if attempt.worker_id == worker_id}

    def victim(self, role: worker_pb2.Role.ValueType, ready: int) -> tuple[str, int]:
        """A worker of the pool and its process, once so many of the pool, and one of the other, are ready."""
        give_up = time.monotonic() + START_S
        while any(pool.ready < (ready if pool.role == role else 1) for pool in self.status.read().pools):
            assert time.monotonic() < give_up, "the workers do not come up"
            time.sleep(0.2)
        for worker in self.status.read().workers:
            told = worker.description
            if told.role == role and told.state == worker_pb2.WORKER_STATE_READY and not worker.unreachable:
                return told.worker_id, listener(int(worker.address.rpartition(":")[2]), self.owner)
        raise AssertionError("no worker of the pool is ready")

    def wait_for_queue(self, worker_id: str) -> None:
        """Until the worker has prompts to compute."""
        give_up = time.monotonic() + WAIT_S
        while time.monotonic() < give_up:
            for worker in self.status.read().workers:
                if worker.description.worker_id == worker_id and worker.description.load.queued_prefill_tokens:
                    return
        raise AssertionError(f"{worker_id} has nothing to do")

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


SECTIONS: dict[str, dict[str, Any]] = {"nixl": {}, "grpc": {"prefer": "grpc", "forbid": ["nixl"]}}


@pytest.fixture(scope="module", params=SECTIONS)
def pairs(request: pytest.FixtureRequest, demo_model: Path) -> Iterator[Pairs]:
    transport: str = request.param
    config = local_config(
        demo_model,
        f"pairs-{transport}",
        model={"dtype": "float32"},
        prefill={"replicas": 2, "cpus_per_replica": 0.5},
        decode={"replicas": 2, "cpus_per_replica": 0.5},
        engine={"kv_cache_mib": 256, "start_deadline_s": START_S},
        kv_transfer=SECTIONS[transport],
        placement={"pick": "random"},  # by predicted time a slow pair may never be used
    )
    with live_cluster(config, START_S + 100) as running, grpc.insecure_channel(running.grpc) as channel:
        yield Pairs(running.pid, channel, transport)


def test_every_prefill_hands_over_to_every_decode(pairs: Pairs, demo_model: Path) -> None:
    prompts = _prompts(AT_ONCE * MOST_BATCHES)
    told: list[list[int]] = []
    used: set[tuple[str, str]] = set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
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


@pytest.mark.parametrize("pairs", ["nixl"], indirect=True)
class TestDeaths:
    """Each kills a worker for good; the others serve while Serve starts another one in its place."""

    def test_decode_dies_in_the_middle_of_its_streams(self, pairs: Pairs, said: Said) -> None:
        victim, pid = pairs.victim(worker_pb2.ROLE_DECODE, ready=2)
        streams = Streams(pairs, "decode-dies", said.prompts)
        streams.wait_for_tokens(FEW, of=AT_ONCE // 2)
        os.kill(pid, signal.SIGKILL)  # its engine core goes with it
        assert streams.ended() == said.tokens
        assert "lost" in pairs.endings(streams.ids, victim), "nobody had to move"

    def test_prefill_dies_with_prompts_to_compute(self, pairs: Pairs, said: Said) -> None:
        victim, pid = pairs.victim(worker_pb2.ROLE_PREFILL, ready=2)
        core = engine_core(pid)
        core.suspend()  # or it might have computed them all before it dies
        streams = Streams(pairs, "prefill-dies", said.prompts)
        pairs.wait_for_queue(victim)
        os.kill(pid, signal.SIGKILL)
        core.kill()
        assert streams.ended() == said.tokens
        assert "lost" in pairs.endings(streams.ids, victim), "it had nothing to do any more"

    def test_prefill_dies_when_its_blocks_are_wanted(self, pairs: Pairs, said: Said) -> None:
        _, pid = pairs.victim(worker_pb2.ROLE_PREFILL, ready=1)
        streams = Streams(pairs, "source-dies", said.prompts)
        streams.wait_for_tokens(1, of=2)
        os.kill(pid, signal.SIGKILL)
        assert streams.ended() == said.tokens

    def test_the_engine_of_decode_dies_and_its_worker_says_so(self, pairs: Pairs, said: Said) -> None:
        victim, pid = pairs.victim(worker_pb2.ROLE_DECODE, ready=2)
        core = engine_core(pid)
        streams = Streams(pairs, "engine-dies", said.prompts)
        streams.wait_for_tokens(FEW, of=AT_ONCE // 2)
        core.kill()
        assert streams.ended() == said.tokens
        assert "lost" in pairs.endings(streams.ids, victim), "nobody had to move"

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, pairs: Pairs) -> Iterator[None]:
        yield
        pairs.status.wait_until_quiet()


def engine_core(worker_pid: int) -> psutil.Process:
    (core,) = (child for child in psutil.Process(worker_pid).children() if "EngineCore" in child.cmdline()[0])
    return core


@dataclass(frozen=True)
class Said:
    """What one engine says to each prompt."""

    prompts: list[Prompt]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def said(demo_model: Path) -> Said:
    """To long prompts, at length."""
    prompts = [replace(prompt, max_tokens=LONG_OUTPUT) for prompt in _prompts(AT_ONCE, LONG_LENGTHS, seed=23)]
    return Said(prompts, reference(demo_model, prompts))


class Streams:
    """One for each prompt, at once."""

    def __init__(self, pairs: Pairs, name: str, prompts: Iterable[Prompt]) -> None:
        self._told: dict[str, list[int]] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._reads = []
        for number, prompt in enumerate(prompts):
            told = self._told[f"{name}-{number}"] = []
            self._reads.append(self._pool.submit(self._read, pairs.stream(f"{name}-{number}", prompt), told))

    @property
    def ids(self) -> list[str]:
        return list(self._told)

    def wait_for_tokens(self, count: int, of: int) -> None:
        """Until so many streams have so many tokens."""
        give_up = time.monotonic() + WAIT_S
        while sum(len(tokens) >= count for tokens in self._told.values()) < of:
            assert time.monotonic() < give_up, f"no {of} streams have {count} tokens"
            time.sleep(0.001)

    def ended(self) -> list[list[int]]:
        """Raises what any of them met."""
        for read in self._reads:
            read.result(timeout=WAIT_S)
        self._pool.shutdown()
        return list(self._told.values())

    @staticmethod
    def _read(stream: Iterator[int], told: list[int]) -> None:
        for token in stream:
            told.append(token)


def _prompts(count: int, lengths: Sequence[int] = LENGTHS, seed: int = 22) -> list[Prompt]:
    """No two share a prefix, so every block of each has to move."""
    draw = random.Random(seed)
    turns = (lengths[i % len(lengths)] for i in range(count))
    return [Prompt([draw.randrange(300, 4000) for _ in range(length)], OUTPUT) for length in turns]
