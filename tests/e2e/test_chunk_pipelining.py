"""A cluster that moves long prompts chunk by chunk says what one engine says, whoever samples the first token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos.baton.v1 import inference_pb2_grpc
from tests.e2e.cluster_status import ClusterStatus
from tests.e2e.reference_engine import Prompt, reference
from tests.e2e.test_token_exact import BLOCK, generate
from tests.live_cluster import live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(580)]

CHUNK = 512
LENGTHS = (100, 1_000, 1_500, 2_048, 2_500, 3_000, 3_500)


@pytest.fixture(scope="module")
def pipelined(demo_model: Path) -> Iterator[grpc.Channel]:
    config = local_config(
        demo_model,
        "pipelined",
        model={"dtype": "float32"},
        kv_transfer={"chunk_pipelining": True, "pipelining_least_tokens": 1_000},
        prefill={"engine_options": {"max_num_batched_tokens": CHUNK}},
    )
    with live_cluster(config) as cluster, grpc.insecure_channel(cluster.grpc) as channel:
        yield channel


def prompts() -> list[Prompt]:
    rng = random.Random(3)
    ids = [[rng.randrange(300, 4000) for _ in range(length)] for length in LENGTHS]
    greedy = [Prompt(one, 16) for one in ids]
    seeded = [Prompt([rng.randrange(300, 4000), *one], 16, temperature=0.8, seed=len(one)) for one in ids]
    single = [Prompt([7, *ids[-1]], 1, temperature=0.8, seed=5)]
    return [*greedy, *seeded, *single]


def test_output_equals_one_engine_and_most_blocks_came_before_their_prompt_was_finished(
    pipelined: grpc.Channel, demo_model: Path
) -> None:
    wanted = prompts()
    expected = reference(demo_model, wanted)
    stub, status = inference_pb2_grpc.InferenceStub(pipelined), ClusterStatus(pipelined)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda prompt: generate(stub, prompt), wanted))

    status.wait_until_quiet()
    different = [len(p.token_ids) for p, a, b in zip(wanted, got, expected, strict=True) if a != b]
    assert different == [], "prompt lengths whose output differs"
    moved = status.totals()
    assert (moved.recomputed, moved.pulls_failed, moved.leases_expired) == (0, 0, 0)
    assert moved.blocks_pulled == moved.blocks_sent
    long = [prompt for prompt in wanted if len(prompt.token_ids) >= 1_000 and prompt.max_tokens > 1]
    assert status.blocks_ahead() > sum(len(prompt.token_ids) // BLOCK for prompt in long) / 2
