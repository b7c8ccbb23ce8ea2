"""Placement by predicted time: load against cached prefixes, prefill apart or not, sessions, chance, reservations."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from cluster.block_hashes import chain_seed, extend_chain
from cluster.config_placement import LatencyStart, PlacementConfig
from cluster.engine import Leg, Role
from cluster.latency_model import Prefill
from router.decision import Decision, Why
from router.predicted_placement import BlockShape, Demand, Placement
from router.worker_loads import Load, WorkerFacts

BLOCK = BlockShape(tokens=32, size_bytes=1 << 20)
SEED = chain_seed("model", "", "")
# 10 ms a prefill and 0.1 ms a token; 10 ms a token of output and 0.2 ms for each sequence; transfers of 512 MiB/s.
START = LatencyStart()


def placement(prefill: int = 2, decode: int = 2, num_blocks: int = 10_000, **config: object) -> Placement:
    made = Placement(PlacementConfig(start=START, **config), BLOCK)  # type: ignore[arg-type]
    for name, role in [
        *((f"p{i}", Role.PREFILL) for i in range(prefill)),
        *((f"d{i}", Role.DECODE) for i in range(decode)),
    ]:
        made.worker_up(WorkerFacts(name, role, num_blocks))
    return made


def demand(tokens: int = 4_000, first: int = 0, max_tokens: int = 100, session: str = "") -> Demand:
    prompt = range(first, first + tokens)
    return Demand(extend_chain(SEED, prompt, BLOCK.tokens), tokens, max_tokens, session)


def first(made: Placement, wanted: Demand, seed: int = 0, now: float = 0.0, avoid: str = "") -> Decision:
    decision = made.first(wanted, now, random.Random(seed), frozenset(avoid.split()))
    assert decision is not None
    return decision


def second(made: Placement, wanted: Demand, source: str = "p0", seed: int = 0, now: float = 0.0) -> Decision:
    decision = made.one(Leg.DECODE, Role.DECODE, wanted, source, now, random.Random(seed), frozenset())
    assert decision is not None
    return decision


# Filter


def test_nobody_is_chosen_where_nobody_can_take_it() -> None:
    draw = random.Random(0)
    assert placement(0, 0).first(demand(), 0.0, draw) is None
    assert placement(1, 0).one(Leg.DECODE, Role.DECODE, demand(), "p0", 0.0, draw, frozenset()) is None
    assert placement(1, 1).first(demand(), 0.0, draw, frozenset({"p0", "d0"})) is None


def test_for_an_empty_pool_the_index_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = placement(1, 0)
    asked: list[Sequence[int]] = []
    monkeypatch.setattr(made.index, "match", asked.append)
    assert made.one(Leg.DECODE, Role.DECODE, demand(), "p0", 0.0, random.Random(0), frozenset()) is None
    assert made.first(demand(), 0.0, random.Random(0), frozenset({"p0"})) is None
    assert asked == []


def test_a_worker_that_is_not_ready_avoided_or_cut_off_gets_nothing() -> None:
    made = placement(prefill=4, disaggregate="always")
    made.loads.set_ready("p0", False)
    made.loads.close_until("p1", 10.0)
    assert {first(made, demand(), seed, avoid="p2").chosen.worker_id for seed in range(20)} == {"p3"}
    assert first(made, demand(), now=11.0, avoid="p2 p3").chosen.worker_id == "p1"


def test_with_one_pool_empty_the_other_runs_the_whole_request() -> None:
    for made, names in ((placement(2, 0), {"p0", "p1"}), (placement(0, 2), {"d0", "d1"})):
        decision = first(made, demand())
        assert decision.leg is Leg.WHOLE
        assert decision.chosen.worker_id in names


# Predict and pick


def test_a_cached_prefix_wins_among_idle_workers() -> None:
    made = placement(disaggregate="always")
    made.index.blocks_stored("p1", demand().hashes[:100])
    decision = first(made, demand())
    assert decision.chosen.worker_id == "p1"
    assert decision.chosen.cached_tokens == 3_200
    assert decision.chosen.prefill_s == pytest.approx(0.01 + 800 * 1e-4)
    assert decision.why is Why.BEST


def test_a_long_queue_outweighs_a_cached_prefix_and_a_short_one_does_not() -> None:
    made = placement(disaggregate="always")
    made.index.blocks_stored("p1", demand().hashes[:100])
    made.loads.report("p1", Load(prefill_tokens=3_000))
    assert first(made, demand()).chosen.worker_id == "p1"
    made.loads.report("p1", Load(prefill_tokens=3_400))
    assert first(made, demand()).chosen.worker_id == "p0"


def test_the_last_token_is_always_computed() -> None:
    made = placement(disaggregate="always")
    wanted = demand(tokens=64)
    made.index.blocks_stored("p0", wanted.hashes)
    assert first(made, wanted).chosen.cached_tokens == 32


def test_a_slow_worker_gets_less_than_a_fast_one() -> None:
    made = placement(disaggregate="always")
    for i in range(200):
        for row, each_token_s in ((0, 5e-4), (1, 5e-5)):
            tokens = 100.0 * (i % 40 + 1)
            made.latency.observe_prefill(row, Prefill(0, 0, tokens, tokens), 0.01 + each_token_s * tokens, i)
    shares = Counter[str]()
    for i in range(66):
        wanted = demand(first=10**7 + 10_000 * i)
        decision = first(made, wanted)
        made.take(str(i), wanted, decision, 0.0)
        shares[decision.chosen.worker_id] += 1
    assert 4 <= shares["p0"] <= 8


def test_decode_goes_to_the_worker_that_has_the_blocks_while_it_is_not_much_busier() -> None:
    made = placement()
    made.index.blocks_stored("d1", demand().hashes)
    assert second(made, demand()).chosen.worker_id == "d1"
    assert second(made, demand()).chosen.transfer_s == 0.0
    made.loads.report("d1", Load(sequences=10))  # 0.2 s of slower tokens against 0.25 s of transfer
    assert second(made, demand()).chosen.worker_id == "d1"
    made.loads.report("d1", Load(sequences=20))
    assert second(made, demand()).chosen.worker_id == "d0"


def test_a_decode_worker_without_room_to_the_end_of_the_request_loses_against_a_busier_one() -> None:
    made = placement(num_blocks=200)
    made.loads.report("d0", Load(sequences=2, blocks=100))
    made.loads.report("d1", Load(sequences=6, blocks=10))
    decision = second(made, demand())  # needs 125 blocks for the prompt and 4 for the output
    assert decision.chosen.worker_id == "d1"
    assert decision.runner_up is not None
    assert decision.runner_up.room_s > 0


def test_a_slow_way_between_two_workers_is_avoided() -> None:
    made = placement()
    rows = {name: made.loads.row(name) for name in ("p0", "d0", "d1")}
    for i in range(100):
        made.latency.observe_transfer(rows["p0"] or 0, rows["d0"] or 0, 1 << 27, 3.0, i)
        made.latency.observe_transfer(rows["p0"] or 0, rows["d1"] or 0, 1 << 27, 0.2, i)
    assert second(made, demand(), source="p0").chosen.worker_id == "d1"
    assert {second(made, demand(), source="gone", seed=seed).chosen.worker_id for seed in range(20)} == {"d0", "d1"}


# Apart or together


def test_a_long_prompt_goes_apart_while_streams_run_on_decode() -> None:
    made = placement()
    for name in ("d0", "d1"):
        made.loads.report(name, Load(sequences=8))
    decision = first(made, demand())
    assert decision.leg is Leg.PREFILL
    assert decision.best_instead is not None
    assert decision.best_instead.harm_s == pytest.approx(8 * 0.4)


def test_what_decode_has_cached_is_prefilled_there() -> None:
    made = placement()
    made.index.blocks_stored("d0", demand().hashes[:120])
    made.loads.report("d0", Load(sequences=1))
    decision = first(made, demand())
    assert decision.leg is Leg.WHOLE
    assert decision.chosen.worker_id == "d0"
    assert decision.best_instead is not None
    assert decision.best_instead.total_s > decision.chosen.total_s


def test_idle_decode_workers_prefill_while_prefill_workers_have_long_queues() -> None:
    made = placement()
    for name in ("p0", "p1"):
        made.loads.report(name, Load(prefill_tokens=50_000))
    assert first(made, demand()).leg is Leg.WHOLE
    for name in ("d0", "d1"):
        made.loads.report(name, Load(sequences=40))
    assert first(made, demand()).leg is Leg.PREFILL


def test_harm_to_streams_counts_as_much_as_the_configuration_says() -> None:
    for harm, leg in ((0.0, Leg.WHOLE), (10.0, Leg.PREFILL)):
        made = placement(stream_harm=harm)
        for name in ("d0", "d1"):
            made.loads.report(name, Load(sequences=2))
        assert first(made, demand()).leg is leg


def test_a_request_for_one_token_is_never_handed_over_so_it_pays_no_transfer() -> None:
    made = placement(disaggregate="always")
    assert first(made, demand(max_tokens=2)).chosen.transfer_s > 0
    assert first(made, demand(max_tokens=1)).chosen.transfer_s == 0


@pytest.mark.parametrize(("mode", "leg"), [("always", Leg.PREFILL), ("never", Leg.WHOLE)])
def test_the_configuration_can_decide_once_and_for_all(mode: str, leg: Leg) -> None:
    made = placement(disaggregate=mode)
    made.loads.report("d0", Load(sequences=40))
    made.index.blocks_stored("d1", demand().hashes)
    decision = first(made, demand())
    assert decision.leg is leg
    assert decision.best_instead is None


# Sessions


def test_a_session_stays_while_that_costs_little_and_yields_beyond_its_margin() -> None:
    made = placement(disaggregate="always", affinity_share=0.2, affinity_most_s=0.1)
    wanted = demand(session="s")  # about 0.67 s: the margin is 0.1 s, that is 1,000 tokens of queue
    made.pins.pin("s", Role.PREFILL, "p1", 0.0)
    made.loads.report("p1", Load(prefill_tokens=900))
    decision = first(made, wanted)
    assert (decision.chosen.worker_id, decision.why) == ("p1", Why.SESSION)
    assert decision.runner_up is not None
    assert decision.runner_up.worker_id == "p0"
    made.loads.report("p1", Load(prefill_tokens=1_100))
    assert first(made, wanted).chosen.worker_id == "p0"


def test_a_pin_to_a_worker_that_is_gone_or_too_old_means_nothing() -> None:
    made = placement(disaggregate="always", pin_s=60.0)
    made.pins.pin("s", Role.PREFILL, "gone", 0.0)
    made.pins.pin("t", Role.PREFILL, "p1", 0.0)
    for session, now in (("s", 1.0), ("t", 60.0)):
        assert {first(made, demand(session=session), seed, now).chosen.worker_id for seed in range(20)} == {"p0", "p1"}


def test_a_decision_that_is_taken_pins_its_session() -> None:
    made = placement(disaggregate="always")
    wanted = demand(session="s")
    decision = first(made, wanted)
    made.take("1", wanted, decision, 0.0)
    made.loads.settle("1")
    other = demand(first=10**6, session="s")
    assert {first(made, other, seed).chosen.worker_id for seed in range(20)} == {decision.chosen.worker_id}


# Reservations, chance, records


@pytest.mark.parametrize("session", ["", "s"])
def test_32_equal_requests_at_once_do_not_go_to_one_worker(session: str) -> None:
    made, wanted = placement(prefill=4, decode=4, disaggregate="always"), demand(session=session)
    shares: dict[Leg, Counter[str]] = {Leg.PREFILL: Counter(), Leg.DECODE: Counter()}
    for i in range(32):
        for leg, decision in ((Leg.PREFILL, first(made, wanted, i)), (Leg.DECODE, second(made, wanted, seed=i))):
            made.take(f"{i}/{leg.value}", wanted, decision, 0.0)
            shares[leg][decision.chosen.worker_id] += 1
    for counts in shares.values():
        assert len(counts) >= 2
        assert max(counts.values()) <= 20


def test_a_cached_prefix_does_not_draw_a_whole_burst_of_different_prompts_to_one_worker() -> None:
    made = placement(prefill=4, disaggregate="always")
    system = extend_chain(SEED, range(1_600), BLOCK.tokens)
    made.index.blocks_stored("p0", system)
    shares = Counter[str]()
    for i in range(32):
        prompt = [*range(1_600), *range(10**6 * (i + 1), 10**6 * (i + 1) + 2_400)]
        wanted = Demand(extend_chain(SEED, prompt, BLOCK.tokens), len(prompt), 100)
        decision = first(made, wanted, i)
        made.take(str(i), wanted, decision, 0.0)
        shares[decision.chosen.worker_id] += 1
    assert len(shares) == 4
    assert max(shares.values()) <= 12


def test_what_is_taken_is_reserved_until_its_outcome() -> None:
    made, wanted = placement(disaggregate="always"), demand(tokens=4_000, max_tokens=1_000)
    one, two = first(made, wanted), second(made, wanted)
    made.take("1", wanted, one, 0.0)
    made.take("2", wanted, two, 0.0)
    expected = made.index.match(wanted.hashes)
    assert [expected[made.loads.row(taken.chosen.worker_id)] for taken in (one, two)] == [125, 125]
    rows = made.loads.usable(Role.PREFILL, frozenset(), 0.0)
    decode = made.loads.usable(Role.DECODE, frozenset(), 0.0)
    assert made.loads.of(rows).prefill_tokens.sum() == 4_000
    assert made.loads.of(decode).prefill_tokens.sum() == 0
    assert made.loads.of(decode).blocks.sum() == -(-(4_000 + 256) // 32)
    for attempt in ("1", "2"):
        made.loads.settle(attempt)
    assert made.loads.of(rows).prefill_tokens.sum() == made.loads.of(decode).blocks.sum() == 0


def test_deciding_changes_nothing_and_is_repeated_by_its_seed() -> None:
    made = placement(prefill=8, disaggregate="always")
    picks = [first(made, demand(), seed) for seed in range(50)]
    assert {pick.chosen.worker_id for pick in picks} == {f"p{i}" for i in range(8)}
    assert {pick.why for pick in picks} == {Why.TIE}
    assert [pick.chosen for pick in picks] == [first(made, demand(), seed).chosen for seed in range(50)]


def test_new_prompts_are_spread_over_workers_that_are_about_equally_fast_and_idle() -> None:
    made = placement(disaggregate="always")
    for i in range(100):
        for row, seconds in ((0, 0.105), (1, 0.1)):
            made.latency.observe_prefill(row, Prefill(0, 0, 4_000, 4_000), seconds, i)
    picks = Counter(first(made, demand(), seed).chosen.worker_id for seed in range(100))
    assert min(picks["p0"], picks["p1"]) >= 30
    made.loads.report("p0", Load(prefill_tokens=4_000))
    assert {first(made, demand(), seed).chosen.worker_id for seed in range(20)} == {"p1"}
    made.loads.report("p0", Load())
    made.index.blocks_stored("p0", demand().hashes[:12])
    assert {first(made, demand(), seed).chosen.worker_id for seed in range(20)} == {"p0"}, "a cached block is no tie"


def test_of_equals_the_one_with_the_emptier_cache_is_taken() -> None:
    made = placement(disaggregate="always")
    made.index.blocks_stored("p0", demand(first=10**6).hashes)
    assert {first(made, demand(), seed).chosen.worker_id for seed in range(20)} == {"p1"}


def test_the_record_explains_the_choice() -> None:
    made = placement(prefill=20)
    made.index.blocks_stored("p7", demand().hashes[:50])
    made.index.blocks_stored("p3", demand().hashes[:20])
    made.loads.report("p9", Load(prefill_tokens=100))
    made.loads.report("d0", Load(sequences=30))
    made.loads.report("d1", Load(sequences=31))
    decision = first(made, demand())
    assert decision.leg is Leg.PREFILL
    candidates = decision.candidates(8)
    assert [candidate.worker_id for candidate in candidates[:2]] == ["p7", "p3"]
    assert decision.chosen == candidates[0]
    assert decision.runner_up == candidates[1]
    assert decision.considered == 20
    totals = [candidate.total_s for candidate in candidates]
    assert len(totals) == 8
    assert totals == sorted(totals)
    assert "p9" not in {candidate.worker_id for candidate in candidates}
    assert len(decision.candidates(100)) == 20
    assert decision.best_instead is not None
    assert decision.best_instead.worker_id == "d0"
    assert decision.best_instead.total_s > decision.chosen.total_s


def test_a_record_stays_what_it_was_when_workers_come_and_go() -> None:
    made = placement(disaggregate="always")
    decision = first(made, demand())
    before = decision.candidates(9)
    made.worker_gone("p0")
    made.worker_up(WorkerFacts("new", Role.PREFILL, 10_000))
    made.loads.report("p1", Load(prefill_tokens=10_000))
    assert decision.candidates(9) == before


def test_the_chosen_one_leads_the_record_even_where_many_are_better() -> None:
    made = placement(prefill=20, disaggregate="always", affinity_share=1.0)
    made.pins.pin("s", Role.PREFILL, "p5", 0.0)
    made.loads.report("p5", Load(prefill_tokens=2_000))
    decision = first(made, demand(session="s"))
    assert decision.chosen.worker_id == "p5"
    assert decision.candidates(3)[0] is decision.chosen
    assert len({candidate.worker_id for candidate in decision.candidates(3)}) == 3
    assert decision.why is Why.SESSION


def test_a_worker_that_comes_back_begins_anew() -> None:
    made = placement(disaggregate="always")
    made.index.blocks_stored("p1", demand().hashes)
    made.loads.report("p1", Load(prefill_tokens=10))
    made.worker_up(WorkerFacts("p1", Role.PREFILL, 10_000))
    assert first(made, demand(), avoid="p0").chosen.cached_tokens == 0
    made.worker_gone("p1")
    made.worker_gone("p1")
    assert first(made, demand()).chosen.worker_id == "p0"
    made.loads.check_integrity()
    made.index.check_integrity()
