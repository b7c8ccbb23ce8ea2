"""Output over the hand-off equals the output of one engine, token for token, and the KV blocks really moved."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos.baton.v1 import inference_pb2 as pb
from protos.baton.v1 import inference_pb2_grpc
from tests.e2e.cluster_status import ClusterStatus
from tests.e2e.reference_engine import Prompt, reference

pytestmark = [pytest.mark.engine, pytest.mark.timeout(580)]

BLOCK = 32
OUTPUT = 16
# On and around block boundaries, and far into many blocks.
LENGTHS = (
    1,
    2,
    5,
    16,
    31,
    32,
    33,
    63,
    64,
    65,
    95,
    96,
    97,
    127,
    128,
    129,
    255,
    256,
    257,
    300,
    511,
    512,
    513,
    1000,
    1023,
)
LONG = (1024, 1025, 2000, 2048, 3000)


def _prompts(seed: int) -> list[Prompt]:
    """Sixty: thirty lengths, greedy and seeded; no two share a prefix, so every block has to move."""
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(300, 4000) for _ in range(length)]

    greedy = [Prompt(ids(length), OUTPUT) for length in (*LENGTHS, *LONG)]
    seeded = [Prompt(ids(length), OUTPUT, temperature=0.8, seed=length) for length in (*LENGTHS, *LONG)]
    return [*greedy, *seeded]


def generate(stub: inference_pb2_grpc.InferenceStub, prompt: Prompt) -> list[int]:
    sampling = pb.SamplingParameters(
        max_tokens=prompt.max_tokens,
        temperature=prompt.temperature,
        seed=prompt.seed,
        presence_penalty=prompt.presence_penalty,
        repetition_penalty=prompt.repetition_penalty,
        min_tokens=prompt.min_tokens,
    )
    request = pb.GenerateRequest(tokens=pb.TokenPrompt(ids=prompt.token_ids), sampling=sampling)
    return [token for part in stub.Generate(request, timeout=120) for d in part.deltas for token in d.token_ids]


def _blocks(prompt: Prompt) -> int:
    """Blocks that hold what decode lacks: it computes the last prompt token itself when it samples the first one."""
    tokens = len(prompt.token_ids) - (prompt.seed is not None)
    return -(-tokens // BLOCK)


@pytest.mark.parametrize("at_once", [1, 32])
def test_output_equals_one_engine_and_every_block_moved(
    channel: grpc.Channel, status: ClusterStatus, demo_model: Path, at_once: int
) -> None:
    prompts = _prompts(seed=at_once)
    expected = reference(demo_model, prompts)
    stub = inference_pb2_grpc.InferenceStub(channel)
    before = status.totals()

    with ThreadPoolExecutor(at_once) as pool:
        got = list(pool.map(lambda prompt: generate(stub, prompt), prompts))

    status.wait_until_quiet()
    moved = status.totals() - before
    different = [len(p.token_ids) for p, a, b in zip(prompts, got, expected, strict=True) if a != b]
    assert different == [], "prompt lengths whose output differs"
    blocks = sum(_blocks(prompt) for prompt in prompts if len(prompt.token_ids) > 1 or prompt.seed is None)
    assert moved.blocks_pulled == moved.blocks_sent == blocks
    assert moved.bytes_pulled == moved.bytes_sent > 0
    assert (moved.recomputed, moved.pulls_failed, moved.leases_expired) == (0, 0, 0)


def test_state_that_spans_tokens_survives_the_hand_off(channel: grpc.Channel, demo_model: Path) -> None:
    rng = random.Random(7)
    ids = [rng.randrange(300, 4000) for _ in range(200)]
    prompts = [
        Prompt(ids, 40, presence_penalty=1.5),
        Prompt(ids, 40, repetition_penalty=1.7),
        Prompt(ids, 40, min_tokens=40),
        Prompt(ids, 40, temperature=1.2, seed=11, presence_penalty=0.5),
    ]
    stub = inference_pb2_grpc.InferenceStub(channel)
    assert [generate(stub, prompt) for prompt in prompts] == reference(demo_model, prompts)


def test_a_repeated_prompt_moves_only_what_decode_lacks(channel: grpc.Channel, status: ClusterStatus) -> None:
    rng = random.Random(8)
    prompt = Prompt([rng.randrange(300, 4000) for _ in range(10 * BLOCK + 5)], 4)
    stub = inference_pb2_grpc.InferenceStub(channel)
    first = generate(stub, prompt)
    status.wait_until_quiet()
    before = status.totals()

    assert generate(stub, prompt) == first

    status.wait_until_quiet()
    moved = status.totals() - before
    assert (moved.blocks_pulled, moved.blocks_sent, moved.recomputed) == (1, 1, 0)
