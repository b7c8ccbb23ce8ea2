"""A whole cluster over vLLM's own connector: streams, usage, and KV blocks that really moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from tests.e2e.cluster_status import ClusterStatus
from tests.live_cluster import LiveCluster, live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def stock_cluster(demo_model: Path) -> Iterator[LiveCluster]:
    config = local_config(demo_model, "stock", model={"dtype": "float32"}, kv_transfer={"connector": "vllm-nixl"})
    with live_cluster(config) as running:
        yield running


@pytest.fixture(scope="module")
def stock_client(stock_cluster: LiveCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stock_cluster.http}/v1", api_key="none", timeout=60, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def stock_status(stock_cluster: LiveCluster) -> Iterator[ClusterStatus]:
    with grpc.insecure_channel(stock_cluster.grpc) as channel:
        yield ClusterStatus(channel)


def test_a_chat_streams_over_the_hand_off(stock_client: openai.OpenAI, stock_status: ClusterStatus) -> None:
    before = stock_status.totals()
    parts = stock_client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Tell me about relay races. " * 20}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    deltas, usage = 0, None
    for part in parts:
        deltas += bool(part.choices and part.choices[0].delta.content)
        usage = part.usage or usage
    assert deltas > 3
    assert usage is not None
    stock_status.wait_until_quiet()
    moved = stock_status.totals() - before
    assert (moved.pulls, moved.recomputed, moved.pulls_failed) == (1, 0, 0)
    assert moved.blocks_pulled == -(-usage.prompt_tokens // 32)
    assert moved.bytes_pulled > 0
    assert stock_status.read().router.disaggregated == 1


def test_every_way_of_sampling_takes_its_first_token_from_decode(
    stock_client: openai.OpenAI, stock_status: ClusterStatus
) -> None:
    draw = random.Random(3)
    before = stock_status.totals()
    ways: list[dict[str, Any]] = [{}, {"seed": 5, "temperature": 1.0}, {"presence_penalty": 1.0}]
    for options in ways:
        ids = [draw.randrange(300, 4000) for _ in range(100)]
        assert tokens_of(stock_client, ids, 8, **options) == 8
    assert tokens_of(stock_client, [400] * 70, 1) == 1
    stock_status.wait_until_quiet()
    moved = stock_status.totals() - before
    assert (moved.pulls, moved.blocks_pulled, moved.recomputed) == (3, 12, 0)


def tokens_of(client: openai.OpenAI, ids: list[int], most: int, **options: Any) -> int:
    answer = client.completions.create(model="demo", prompt=ids, max_tokens=most, **{"temperature": 0} | options)
    assert answer.usage is not None
    return answer.usage.completion_tokens
