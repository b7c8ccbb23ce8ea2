"""Predicted times of workers: from the configuration, then the pool, then the worker's own measurements."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config_placement import LatencyStart
from cluster.latency_model import LatencyModel, Prefill

START = LatencyStart(
    prefill_s=0.01,
    prefill_token_s=1e-4,
    step_s=0.01,
    step_sequence_s=1e-3,
    transfer_s=0.005,
    transfer_mib_per_s=100,
)
MIB = float(1 << 20)


def model(*pools: str) -> LatencyModel:
    made = LatencyModel(START, half_life_s=60.0)
    for row, pool in enumerate(pools):
        made.add(row, pool)
    return made


def one(row: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.array([row], np.intp)


def prefill_s(made: LatencyModel, row: int, uncached: float, prompt: float | None = None) -> float:
    compute_s = made.compute_s(one(row), np.array([uncached]), uncached if prompt is None else prompt)
    return float((made.asking_s(one(row)) + compute_s)[0])


def queue_s(made: LatencyModel, row: int, ahead: float, busy_s: float = 0.0) -> float:
    return float(made.queue_s(one(row), np.array([ahead]), np.array([busy_s]))[0])


def transfer_s(made: LatencyModel, source: int, target: int, size_bytes: float) -> float:
    either = made.transfer_from(source, one(target), np.array([size_bytes]))
    assert either == pytest.approx(made.transfer_to(one(source), target, size_bytes))
    return float(either[0])


def token_s(made: LatencyModel, row: int, running: float, kv_tokens: float = 0.0) -> float:
    return float(made.token_s(one(row), np.array([running]), np.array([kv_tokens]))[0])


def teach_prefill(made: LatencyModel, row: int, each_token_s: float, seed: int = 0) -> None:
    draw = random.Random(seed)
    for i in range(100):
        tokens = draw.uniform(100, 10_000)
        made.observe_prefill(row, Prefill(0, 0, tokens, tokens), 0.02 + each_token_s * tokens, i * 0.1)


def test_it_starts_from_the_configuration() -> None:
    made = model("prefill")
    assert prefill_s(made, 0, 2_000) == pytest.approx(0.01 + 0.2)
    assert token_s(made, 0, 5) == pytest.approx(0.015)
    assert queue_s(made, 0, 3_000) == pytest.approx(0.31)
    assert transfer_s(made, 0, 0, 50 * MIB) == pytest.approx(0.505)


def test_a_transfer_of_nothing_takes_no_time() -> None:
    assert transfer_s(model("p"), 0, 0, 0.0) == 0.0


def test_a_queue_is_as_long_as_what_is_left_of_the_computing_ahead() -> None:
    made = model("prefill")
    assert queue_s(made, 0, 0) == queue_s(made, 0, 0, busy_s=1.0) == 0.0
    assert queue_s(made, 0, 3_000, busy_s=0.1) == pytest.approx(0.21)
    assert queue_s(made, 0, 3_000, busy_s=7.0) == 0.0, "it took longer than predicted, and must end soon"


def test_prompts_that_waited_teach_the_same_as_those_that_did_not() -> None:
    """Each prompt arrives while the one ahead of it is being computed: after a third of that, or two."""
    made, draw = model("prefill", "prefill"), random.Random(6)

    def truth(tokens: float) -> float:
        return 0.03 + 1.2e-4 * tokens

    for i in range(200):
        ahead, own = draw.uniform(100, 2_000), draw.uniform(100, 2_000)
        noise = draw.uniform(0.9, 1.1)
        busy_s = truth(ahead) * draw.choice([1 / 3, 2 / 3])
        made.observe_prefill(0, Prefill(ahead, busy_s, own, own), noise * (truth(ahead) - busy_s + truth(own)), i)
        made.observe_prefill(1, Prefill(0, 0, own, own), noise * truth(own), i)
    for tokens in (100, 1_000, 2_000):
        assert prefill_s(made, 0, tokens) == pytest.approx(prefill_s(made, 1, tokens), rel=0.1)
        assert prefill_s(made, 0, tokens) == pytest.approx(truth(tokens), rel=0.1)
    assert queue_s(made, 0, 1_000, busy_s=0.05) == pytest.approx(0.1, rel=0.1)


def test_each_worker_is_learnt_by_itself() -> None:
    made = model("prefill", "prefill")
    teach_prefill(made, 0, 1e-3)
    teach_prefill(made, 1, 1e-5)
    assert prefill_s(made, 0, 4_000) == pytest.approx(4.02, rel=0.1)
    assert prefill_s(made, 1, 4_000) == pytest.approx(0.06, rel=0.1)


def test_a_new_worker_starts_from_what_its_pool_has_learnt() -> None:
    made = model("prefill", "decode")
    teach_prefill(made, 0, 1e-3)
    made.add(2, "prefill")
    assert prefill_s(made, 2, 4_000) == pytest.approx(4.02, rel=0.1)
    assert prefill_s(made, 1, 4_000) == pytest.approx(0.41)


def test_a_worker_that_was_slow_for_a_while_is_not_avoided_for_ever() -> None:
    made = model("prefill", "prefill")
    for i in range(10):
        made.observe_prefill(1, Prefill(0, 0, 1_000, 1_000), 0.5, i * 0.1)
    for i in range(600):
        made.observe_prefill(0, Prefill(0, 0, 1_000, 1_000), 0.1, 1 + i * 0.5)
    assert prefill_s(made, 1, 1_000) > 0.2
    made.on_time(301.0)
    assert prefill_s(made, 1, 1_000) == pytest.approx(0.1, rel=0.1)
    for i in range(20):
        made.observe_prefill(1, Prefill(0, 0, 1_000, 1_000), 0.5, 301 + i * 0.1)
    assert prefill_s(made, 1, 1_000) == pytest.approx(0.5, rel=0.1), "it is slow indeed"
    assert prefill_s(made, 0, 1_000) == pytest.approx(0.1, rel=0.1)


def test_a_row_that_is_used_again_forgets_its_last_worker() -> None:
    made = model("prefill", "decode", "decode")
    for i in range(50):
        made.observe_transfer(0, 1, 10 * MIB, 2.0, i)
        made.observe_transfer(0, 2, 10 * MIB, 0.2, i)
    teach_prefill(made, 0, 1e-3)
    made.remove(0)
    made.observe_prefill(0, Prefill(0, 0, 1, 1), 100.0, 0.0)
    made.add(0, "decode")
    assert prefill_s(made, 0, 4_000) == pytest.approx(0.41)
    usual = made.transfer_from(None, one(1), np.array([10 * MIB]))[0]
    assert transfer_s(made, 0, 1, 10 * MIB) == transfer_s(made, 1, 0, 10 * MIB) == usual


def test_attention_over_a_long_cached_prefix_is_learnt_where_it_costs() -> None:
    made, draw = model("prefill"), random.Random(4)

    def truth(uncached: float, prompt: float) -> float:
        return 0.01 + 1e-4 * uncached + 1e-8 * uncached * (prompt - uncached / 2)

    for i in range(400):
        prompt = draw.uniform(1_000, 100_000)
        uncached = prompt * draw.choice([0.05, 0.3, 1.0])
        made.observe_prefill(0, Prefill(0, 0, uncached, prompt), truth(uncached, prompt) * draw.uniform(0.95, 1.05), i)
    for uncached, prompt in ((500, 50_000), (5_000, 5_000), (50_000, 50_000), (80_000, 100_000)):
        assert prefill_s(made, 0, uncached, prompt) == pytest.approx(truth(uncached, prompt), rel=0.15)


def test_time_between_tokens_is_learnt_from_sequences_and_their_cache() -> None:
    made, draw = model("decode"), random.Random(5)
    for i in range(300):
        running, kv = draw.randint(0, 64), draw.uniform(0, 100_000)
        made.observe_token(0, running, kv, 0.02 + 0.0005 * running + 2e-7 * kv, i * 0.1)
    assert token_s(made, 0, 32, 50_000) == pytest.approx(0.046, rel=0.1)
    assert token_s(made, 0, 0, 0) == pytest.approx(0.02, rel=0.15)


def test_a_slow_pair_is_told_from_the_rest() -> None:
    made = model("p", "d", "d")
    for i in range(200):
        made.observe_transfer(0, 1, 10 * MIB, 0.1, i)
        made.observe_transfer(0, 2, 10 * MIB, 0.4, i)
    assert transfer_s(made, 0, 1, 10 * MIB) == pytest.approx(0.1, rel=0.25)
    assert transfer_s(made, 0, 2, 10 * MIB) == pytest.approx(0.4, rel=0.25)
    assert 0.1 < made.transfer_from(None, one(1), np.array([10 * MIB]))[0] < 0.4


@pytest.mark.parametrize("free", [0.0, 1e-12])
def test_costs_that_the_configuration_calls_free_are_learnt_like_all_others(free: float) -> None:
    start = LatencyStart(
        prefill_s=free,
        prefill_token_s=free,
        step_s=free,
        step_sequence_s=free,
        transfer_s=free,
        transfer_mib_per_s=1e12,
    )
    made, draw = LatencyModel(start, half_life_s=60.0), random.Random(0)
    for row in (0, 1):
        made.add(row, "pool")
    for i in range(200):
        tokens, running, mib = draw.uniform(100, 10_000), float(draw.randint(0, 40)), draw.uniform(1, 500)
        made.observe_prefill(0, Prefill(0.0, 0.0, tokens, tokens), 0.05 + 2e-4 * tokens, 0.1 * i)
        made.observe_token(0, running, 1_000 * running, 0.02 + 5e-4 * running, 0.1 * i)
        made.observe_transfer(0, 1, mib * MIB, 0.01 + 0.005 * mib, 0.1 * i)
    assert prefill_s(made, 0, 4_000) == pytest.approx(0.85, rel=0.1)
    assert token_s(made, 0, 20, 20_000) == pytest.approx(0.03, rel=0.1)
    assert transfer_s(made, 0, 1, 100 * MIB) == pytest.approx(0.51, rel=0.1)


@given(
    st.lists(
        st.tuples(st.sampled_from("pkt"), st.integers(0, 5), st.floats(0, 1e12), st.floats(), st.floats(0, 1e6)),
        max_size=50,
    )
)
def test_no_measurement_makes_a_prediction_absurd(measured: list[tuple[str, int, float, float, float]]) -> None:
    made = model("p", "d", "d")
    for kind, row, amount, seconds, now in measured:
        if kind == "p":
            made.observe_prefill(row, Prefill(amount, 0, amount, amount), seconds, now)
        elif kind == "k":
            made.observe_token(row, amount, amount, seconds, now)
        else:
            made.observe_transfer(row, (row + 1) % 3, amount, seconds, now)
    rows = np.arange(3)
    for times in (
        made.asking_s(rows),
        made.compute_s(rows, np.full(3, 1e4), 1e5),
        made.queue_s(rows, np.full(3, 1e5), np.zeros(3)),
        made.token_s(rows, np.full(3, 64.0), np.full(3, 1e6)),
        made.transfer_to(rows, 0, 1e9),
        made.transfer_from(0, rows, np.full(3, 1e9)),
    ):
        assert all(0 <= seconds < math.inf for seconds in times.tolist())


def test_what_is_usual_is_the_pools_and_not_the_workers() -> None:
    made = model("prefill", "prefill", "decode")
    teach_prefill(made, 0, each_token_s=2e-4)
    mine = made.usual_prefill_s(1, Prefill(0, 0, 5_000, 5_000))
    assert mine == made.usual_prefill_s(0, Prefill(0, 0, 5_000, 5_000))
    assert mine == pytest.approx(5_000 * 2e-4, rel=0.1)
    assert made.usual_token_s(2, running=2, kv_tokens=0) == pytest.approx(START.step_s + 2 * START.step_sequence_s)
    made.remove(2)
    assert made.usual_token_s(2, 0, 0) is made.usual_prefill_s(2, Prefill(0, 0, 1, 1)) is None
