"""Plans: what they must do whatever the model says, and what is known of well-known cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import PlanImpossible
from cluster.hardware import hardware
from deploy.planning.apart import Apart
from deploy.planning.demand import Demand, Goals
from deploy.planning.planner import Mode, Plan, make_plan
from deploy.planning.queueing import percentile
from deploy.planning.search import DecodeSide, Pair, PrefillSide, WholeSide, cheapest_apart, cheapest_whole, least
from deploy.planning.whole_pool import Whole
from tests.deploy.planning.demands import demand, single

rates = st.floats(0.5, 200)
quick = settings(max_examples=10, deadline=None)


def gpus(asked: Demand) -> tuple[float, float]:
    """Of the cheapest plan apart and of the cheapest whole; infinite where there is none."""
    found = cheapest_apart(asked), cheapest_whole(asked)
    return tuple(float("inf") if plan is None else plan.gpus for plan in found)  # type: ignore[return-value]


def never_fewer(easier: Demand, harder: Demand) -> None:
    for fewer, more in zip(gpus(easier), gpus(harder), strict=True):
        assert fewer <= more


@quick
@given(rates, rates)
def test_more_load_never_takes_fewer_gpus(one: float, other: float) -> None:
    low, high = sorted((one, other))
    never_fewer(demand(low), demand(high))


@quick
@given(st.floats(0.3, 5.0), st.floats(0.3, 5.0))
def test_a_tighter_goal_for_first_tokens_never_takes_fewer_gpus(one: float, other: float) -> None:
    tight, loose = sorted((one, other))
    never_fewer(demand(goals=(loose, 0.03)), demand(goals=(tight, 0.03)))


@quick
@given(st.floats(0.009, 0.1), st.floats(0.009, 0.1))
def test_a_tighter_goal_for_later_tokens_never_takes_fewer_gpus(one: float, other: float) -> None:
    tight, loose = sorted((one, other))
    never_fewer(demand(goals=(1.0, loose)), demand(goals=(1.0, tight)))


@quick
@given(st.floats(1e9, 60e9), st.floats(1e9, 60e9), st.sampled_from(["llama-3.1-8b", "gemma-2-9b"]))
def test_a_faster_network_never_makes_a_plan_worse(one: float, other: float, model: str) -> None:
    slow, fast = sorted((one, other))
    worse, better = (cheapest_apart(demand(60, model=model, network=each)) for each in (slow, fast))
    if worse is None:  # no number of workers makes up for so slow a network
        return
    assert better is not None
    assert better.gpus <= worse.gpus
    same = (better.prefill.replicas, better.decode.replicas) == (worse.prefill.replicas, worse.decode.replicas)
    if same:
        for share in (0.5, 0.95, 0.999):
            assert percentile(better.gap_longer_than, share) <= percentile(worse.gap_longer_than, share) + 1e-9
            assert percentile(better.ttft_later_than, share) <= percentile(worse.ttft_later_than, share) + 1e-9


@quick
@given(st.floats(0.0, 0.9), st.floats(0.0, 0.9))
def test_more_cached_prefixes_never_take_more_gpus(one: float, other: float) -> None:
    few, many = sorted((one, other))
    base = demand(60)
    with_few, with_many = (replace(base, workload=replace(base.workload, hit_share=share)) for share in (few, many))
    never_fewer(with_many, with_few)


@quick
@given(rates)
def test_a_plan_keeps_its_goals_and_one_replica_fewer_does_not(rate: float) -> None:
    asked = demand(rate, goals=(1.0, 0.012))
    apart, whole = cheapest_apart(asked), cheapest_whole(asked)
    assert apart is not None
    assert whole is not None
    for found in (apart, whole):
        assert percentile(found.ttft_later_than, 0.95) <= asked.goals.ttft_s * 1.001
        assert percentile(found.gap_longer_than, 0.95) <= asked.goals.itl_s * 1.001
    pair = Pair(asked, PrefillSide(asked, apart.prefill.engine), DecodeSide(asked, apart.decode.engine))
    side = WholeSide(asked, whole.pool.whole.engine, whole.pool.whole.times.chunk)
    fewer: list[Apart | Whole | None] = []
    if apart.prefill.replicas > 1:
        fewer.append(pair.at(apart.prefill.replicas - 1, apart.decode.replicas))
    if apart.decode.replicas > 1:
        fewer.append(pair.at(apart.prefill.replicas, apart.decode.replicas - 1))
    if whole.pool.replicas > 1:
        fewer.append(side.at(whole.pool.replicas - 1))
    assert not any(each is not None and each.keeps_goals() for each in fewer)


@quick
@given(rates, st.sampled_from(["apart", "whole"]))
def test_a_bound_on_gpus_ends_no_search_before_the_plan_of_fewest(rate: float, way: str) -> None:
    asked = replace(demand(rate, gpu=single("l40s"), goals=(2.0, 0.05)), decode=replace(single(), price=30.0))
    search: Callable[[Demand], Apart | Whole | None] = cheapest_apart if way == "apart" else cheapest_whole
    fewest = search(replace(asked, prefill=replace(asked.prefill, price=30.0)))  # one price: the cheapest has fewest
    assert fewest is not None
    found = search(replace(asked, most_gpus=fewest.gpus))
    assert found is not None
    assert found.gpus == fewest.gpus
    assert search(replace(asked, most_gpus=fewest.gpus - 1)) is None


def test_dearer_gpus_are_taken_where_the_cheapest_would_be_too_many() -> None:
    asked = replace(demand(20, goals=(2.0, 0.05)), prefill=replace(single("l40s"), price=0.3))
    free = make_plan(asked, Mode.WHOLE).chosen
    plan = make_plan(replace(asked, most_gpus=free.gpus - 1), Mode.WHOLE)
    assert isinstance(free, Whole)
    assert isinstance(plan.chosen, Whole)
    assert (free.pool.whole.engine.hardware.name, plan.chosen.pool.whole.engine.hardware.name) == ("L40S", "H100")
    assert plan.chosen.gpus < free.gpus
    assert plan.chosen.price > free.price


def test_of_a_way_that_is_only_too_large_the_choice_says_so() -> None:
    plan = make_plan(replace(demand(0.1), most_gpus=1))
    assert isinstance(plan.chosen, Whole)
    assert plan.because == "the other way falls short: 2 GPUs are needed, 1 more than the 1 allowed"


@given(st.integers(1, 300), st.integers(1, 5))
def test_the_least_number_is_found(answer: int, first: int) -> None:
    assert least(lambda count: count >= answer, first, 256) == (max(answer, first) if answer <= 256 else None)


def tensor_parallel(plan: Plan) -> set[int]:
    chosen = plan.chosen
    engines = [chosen.prefill.engine, chosen.decode.engine] if isinstance(chosen, Apart) else [chosen.pool.whole.engine]
    return {engine.tensor_parallel for engine in engines}


@pytest.mark.parametrize(
    ("model", "gpu", "least_split"),
    [
        ("llama-3.1-70b", "h100", 4),  # 141 GB of weights: more than two cards of 80 GB have for them
        ("llama-3.1-70b", "h200", 2),
        ("llama-3.1-70b", "a100", 4),
        ("llama-3.1-70b", "l40s", 4),
        ("llama-3.1-70b", "b200", 1),
        ("llama-3.1-8b", "l40s", 1),
        ("deepseek-v3", "h200", 8),
    ],
)
def test_a_large_model_is_split_over_as_many_gpus_as_hold_it(model: str, gpu: str, least_split: int) -> None:
    plan = make_plan(demand(1, model=model, gpu=hardware(gpu), goals=(10.0, 0.2)))
    assert min(tensor_parallel(plan)) >= least_split
    assert plan.chosen.gpus % least_split == 0


def test_one_idle_gpu_is_enough_for_one_request_now_and_then() -> None:
    plan = make_plan(demand(0.1))
    assert isinstance(plan.chosen, Whole)  # apart takes at least two
    assert plan.chosen.gpus == 1
    assert plan.apart is not None
    assert plan.apart.gpus == 2


def test_long_prompts_and_a_tight_itl_are_served_apart() -> None:
    plan = make_plan(demand(50, model="llama-3.1-70b", gpu=hardware("h100"), tokens=(4_000, 300), goals=(2.0, 0.03)))
    assert isinstance(plan.chosen, Apart)
    assert plan.whole is None or plan.whole.price > plan.chosen.price


def test_decode_is_bound_by_room_where_sequences_are_long() -> None:
    short, long = (demand(20, tokens=(1_000, each), goals=(1.0, 0.05)) for each in (200, 4_000))
    few, many = cheapest_apart(short), cheapest_apart(long)
    assert few is not None
    assert many is not None
    assert many.decode.replicas > 5 * few.decode.replicas
    assert many.prefill.replicas == few.prefill.replicas


def test_hand_overs_weigh_more_where_outputs_are_short() -> None:
    network = 2e9  # a prompt takes a fifth of a second
    assert cheapest_apart(demand(5, tokens=(2_000, 200), network=network)) is not None
    assert cheapest_apart(demand(5, tokens=(2_000, 10), network=network)) is None


def test_a_window_or_an_unequal_split_needs_the_stock_connector() -> None:
    ours, stock = (cheapest_apart(demand(5, model=model)) for model in ("llama-3.1-8b", "gemma-2-9b"))
    assert ours is not None
    assert stock is not None
    assert (ours.hand_over.stock, stock.hand_over.stock) == (False, True)


def test_pools_are_split_alike_unless_asked() -> None:
    asked = demand(20, model="llama-3.1-70b", gpu=hardware("h100"), tokens=(4_000, 300), goals=(2.0, 0.03))
    alike, free = cheapest_apart(asked), cheapest_apart(replace(asked, unequal_split=True))
    assert alike is not None
    assert free is not None
    assert alike.prefill.engine.tensor_parallel == alike.decode.engine.tensor_parallel
    assert free.price <= alike.price


def test_each_pool_gets_the_hardware_it_is_given() -> None:
    asked = replace(demand(20), prefill=single("l40s"))
    found = cheapest_apart(asked)
    assert found is not None
    assert (found.prefill.engine.hardware.name, found.decode.engine.hardware.name) == ("L40S", "H100")
    assert found.price == pytest.approx(found.prefill.replicas * 1.2 + found.decode.replicas * 3.0)


def test_the_mode_decides_where_it_is_named() -> None:
    asked = demand(20)
    assert isinstance(make_plan(asked, Mode.DISAGGREGATED).chosen, Apart)
    assert isinstance(make_plan(asked, Mode.WHOLE).chosen, Whole)


def test_the_cheaper_way_is_chosen_and_says_so() -> None:
    for asked in (demand(0.1), demand(60, tokens=(8_000, 200), goals=(2.0, 0.012)), demand(40)):
        plan = make_plan(asked)
        prices = [each.price for each in (plan.apart, plan.whole) if each is not None]
        assert plan.chosen.price == min(prices)
        assert plan.because


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (demand(1, model="llama-3.1-70b"), "the weights of llama-3.1-70b take 141.1 GB, but 1 x H100 have 68.0 GB"),
        (
            demand(1, model="llama-3.1-8b", gpu=single("l40s"), tokens=(100_000, 20_000), goals=(900, 1)),
            "the KV cache of the longest request",
        ),
        (demand(1, goals=(0.05, 0.03)), "TTFT 0.05 s: a prompt of 3,"),
        (demand(1, goals=(1.0, 0.004)), "ITL 4 ms: a step of one sequence takes"),
        (demand(5_000_000), "workers of a kind keep"),
        (replace(demand(200), most_gpus=3), "more than the 3 allowed"),
    ],
)
def test_an_impossible_demand_names_the_bound_and_by_how_much(asked: Demand, line: str) -> None:
    with pytest.raises(PlanImpossible) as refused:
        make_plan(asked)
    assert line in str(refused.value)


def test_a_network_that_is_too_slow_is_told_where_whole_engines_do() -> None:
    plan = make_plan(demand(5, tokens=(2_000, 10), network=2e9))
    assert isinstance(plan.chosen, Whole)
    [shortfall] = plan.apart_shortfalls
    assert shortfall.limit.value == "network"
    assert shortfall.excess > 0


def test_the_fewer_stalls_may_be_the_more_whole_engines_it_takes() -> None:
    often, seldom = (replace(demand(20), goals=Goals(1.0, 0.0085, share)) for share in (0.8, 0.98))
    whole, whole_seldom = (each.whole for each in map(make_plan, (often, seldom)))
    assert whole is not None
    assert whole_seldom is None or whole_seldom.price >= 1.5 * whole.price
