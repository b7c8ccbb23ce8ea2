"""What operators may order, within what the configuration sets aside."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import parse_config
from cluster.errors import InvalidRequest
from cluster.scaling.frame import Bounds, ScalingOrders, ScalingSetup, checked_order, effective_bounds
from tests.cluster.scaling.simulated_load import DECODE, PREFILL, setup_of


def test_an_order_takes_the_place_of_the_configured_bounds_until_it_is_taken_back() -> None:
    setup = setup_of()
    orders = checked_order(setup, ScalingOrders(), {PREFILL: Bounds(2, 6)})
    assert effective_bounds(setup, orders) == {PREFILL: Bounds(2, 6), DECODE: Bounds(1, 10)}
    both = checked_order(setup, orders, {DECODE: Bounds(3, 3)})
    assert effective_bounds(setup, both) == {PREFILL: Bounds(2, 6), DECODE: Bounds(3, 3)}
    again = checked_order(setup, both, {PREFILL: None})
    assert effective_bounds(setup, again) == {PREFILL: Bounds(1, 10), DECODE: Bounds(3, 3)}
    assert (orders.version, both.version, again.version) == (1, 2, 3)


@pytest.mark.parametrize(
    ("pools", "order", "says"),
    [
        ({}, {PREFILL: Bounds(2, 11)}, "prefill=2..11 is not within 1..10"),
        ({}, {PREFILL: Bounds(0, 0)}, "prefill=0..0 is not within 1..10"),
        ({"decode": {"replicas": 3}}, {DECODE: Bounds(2, 2)}, "decode has a fixed size, 3: set decode.autoscale"),
        ({"budget": 6}, {PREFILL: Bounds(5, 6), DECODE: Bounds(2, 3)}, "prefill 5, decode 2 cost 7, more than .* 6"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(pools: Any, order: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        checked_order(setup_of(**pools), ScalingOrders(), order)


def test_orders_from_before_a_new_configuration_count_as_far_as_it_allows() -> None:
    orders = ScalingOrders(1, {PREFILL: Bounds(6, 8), DECODE: Bounds(2, 2)})
    smaller = setup_of(prefill={"autoscale": {"max_replicas": 4}}, decode={"replicas": 5})
    assert effective_bounds(smaller, orders) == {PREFILL: Bounds(4, 4), DECODE: Bounds(5, 5)}
    poorer = setup_of(budget=4)
    assert effective_bounds(poorer, orders) == {PREFILL: Bounds(1, 10), DECODE: Bounds(1, 10)}


def test_a_setup_survives_being_written_as_json_and_read_again() -> None:
    setup = setup_of(budget=6, ratio_most=2.0)
    assert ScalingSetup.parsed(setup.document) == setup


def test_a_replica_costs_its_gpus_unless_said_otherwise() -> None:
    gpus = {"gpus_per_replica": 4}
    raw = {"model": {"path": "m"}, "engine": {"device": "gpu"}, "prefill": gpus, "decode": gpus}
    raw["decode"] = gpus | {"autoscale": {"cost": 2.5}}
    assert [frame.cost for frame in ScalingSetup.of(parse_config(raw)).pools.values()] == [4.0, 2.5]
