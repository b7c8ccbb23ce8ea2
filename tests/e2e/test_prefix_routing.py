"""Conversations find their own blocks again among two prefill and two decode workers, and the router says why."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import openai
import pytest
from openai.types import Completion

from protos.baton.v1 import admin_pb2, admin_pb2_grpc
from tests.e2e.cluster_status import ClusterStatus
from tests.live_cluster import LiveCluster, live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(580)]

BLOCK, TURNS, OUTPUT = 32, 8, 8


@pytest.fixture(scope="module")
def running(demo_model: Path) -> Iterator[LiveCluster]:
    config = local_config(
        demo_model,
        "prefix",
        prefill={"replicas": 2, "cpus_per_replica": 0.5},
        decode={"replicas": 2, "cpus_per_replica": 0.5},
        engine={"kv_cache_mib": 256},
        placement={"disaggregate": "auto"},
    )
    with live_cluster(config) as cluster:
        yield cluster


@dataclass
class Conversation:
    """Every turn repeats all that was said before it."""

    name: str
    draw: random.Random
    said: list[int] = field(default_factory=list)
    reusable: int = 0
    hits: int = 0
    ids: list[str] = field(default_factory=list)

    def turn(self, client: openai.OpenAI) -> Completion:
        before = len(self.said) // BLOCK if self.ids else 0
        self.said += [self.draw.randrange(300, 4_000) for _ in range(self.draw.randrange(70, 140))]
        answer = client.completions.create(
            model="demo",
            prompt=self.said,
            max_tokens=OUTPUT,
            temperature=0.0,
            extra_body={"ignore_eos": True},
            extra_headers={"x-session-id": self.name},
        )
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        self.reusable += before
        self.hits += min(cached // BLOCK, before)
        self.ids.append(answer.id)
        return answer


def test_conversations_find_their_blocks_and_every_choice_has_its_reasons(running: LiveCluster) -> None:
    talks = [Conversation(f"talk-{number}", random.Random(number)) for number in range(3)]
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key="none", timeout=60, max_retries=0) as client:
        for _ in range(TURNS):
            for talk in talks:
                talk.turn(client)
    assert sum(talk.hits for talk in talks) >= 0.95 * sum(talk.reusable for talk in talks), talks
    with grpc.insecure_channel(running.grpc) as channel:
        told = {talk.name: [_explained(channel, request_id) for request_id in talk.ids] for talk in talks}
        _was_foreseen([each for of_talk in told.values() for each in of_talk])
        for talk in talks:
            _has_reasons(told[talk.name][-1], talk)
        ClusterStatus(channel).wait_until_quiet()


def _explained(channel: grpc.Channel, request_id: str) -> admin_pb2.Explanation:
    stub = admin_pb2_grpc.AdminStub(channel)
    told: admin_pb2.Explanation = stub.Explain(admin_pb2.ExplainRequest(request_id=request_id), timeout=10)
    return told


def _was_foreseen(told: list[admin_pb2.Explanation]) -> None:
    """What was predicted to be in a cache was there."""
    apart = sum(abs(each.cached_tokens_predicted - each.cached_tokens_actual) for each in told)
    assert apart <= 0.02 * sum(each.cached_tokens_actual for each in told), told


def _has_reasons(told: admin_pb2.Explanation, talk: Conversation) -> None:
    assert (told.outcome, told.session_id, told.output_tokens) == ("completed", talk.name, OUTPUT)
    assert {decision.question for decision in told.decisions} & {"prefill", "whole"}
    for decision in told.decisions:
        assert decision.because
        assert decision.chosen in {candidate.worker_id for candidate in decision.candidates}
        assert len(decision.candidates) == 2
    assert told.attempts[0].outcome == "completed"
    assert told.predicted.ttft_s > 0
    assert told.actual.ttft_s > 0
