"""Admission under load, simulated: shares follow weights, a flood stays its sender's own trouble, nobody starves."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config_admission import AdmissionConfig
from tests.router.admission_load import Fleet, Sender


def config(**sections: Any) -> AdmissionConfig:
    return AdmissionConfig.model_validate(sections)


@pytest.mark.parametrize("sizes", [(500, 1_500), (100, 12_000)], ids=["alike", "from short to long"])
def test_shares_are_within_5_percent_of_the_weights_at_three_times_the_capacity(sizes: tuple[int, int]) -> None:
    weights = {"gold": 4.0, "silver": 2.0, "iron": 1.0}
    rules = config(tenants={name: {"weight": weight} for name, weight in weights.items()}, queue={"most_wait_s": 20.0})
    fleet = Fleet(rules, [Sender(name, 8_000.0, *sizes) for name in weights])
    report = fleet.run(until_s=400.0, count_from_s=40.0)
    for name, weight in weights.items():
        assert report.share(name) == pytest.approx(weight / 7, rel=0.05)


def test_a_tenant_that_declares_four_times_what_it_uses_still_gets_its_share() -> None:
    rules = config(queue={"most_wait_s": 20.0})
    fleet = Fleet(rules, [Sender("careful", 12_000.0), Sender("loud", 12_000.0, declared=4.0)])
    report = fleet.run(until_s=400.0, count_from_s=40.0)
    assert report.share("loud") == pytest.approx(0.5, rel=0.05)


def test_many_small_requests_get_no_more_than_few_large_ones() -> None:
    fleet = Fleet(config(), [Sender("small", 12_000.0, 200, 600), Sender("large", 12_000.0, 4_000, 12_000)])
    assert fleet.run(until_s=400.0, count_from_s=40.0).share("small") == pytest.approx(0.5, rel=0.05)


FLOOD = 15_000.0  # tokens a second, beside a capacity of 8,000


@pytest.mark.parametrize(
    "queue",
    [{"most_wait_s": 10.0}, {"most_wait_s": 10.0, "max_requests": 200}, {"most_wait_s": 60.0}],
    ids=["roomy queue", "queue that the flood fills", "queue in which the flood grows old"],
)
@pytest.mark.parametrize("others", [1_000.0, 1_300.0, 1_500.0], ids=["busy", "near the limit", "overloaded before"])
def test_a_flood_does_not_raise_the_p99_ttft_of_another_tenant_by_half(queue: dict[str, float], others: float) -> None:
    rules = config(queue=queue)
    quiet = [Sender("victim", 600.0, 100, 300), *(Sender(f"other {n}", others) for n in range(5))]
    before = Fleet(rules, quiet, seed=3).run(until_s=400.0, count_from_s=40.0)
    during = Fleet(rules, [*quiet, Sender("other 0", FLOOD)], seed=3).run(until_s=400.0, count_from_s=40.0)
    assert during.refused["victim"] == 0
    assert during.refused["other 0"] > 1_000
    assert during.p99_ttft("victim") <= 1.5 * before.p99_ttft("victim")


def test_a_flood_does_not_raise_the_wait_of_another_tenant_by_half_where_all_waited_before() -> None:
    rules = config(queue={"most_wait_s": 10.0})
    quiet = [Sender("victim", 600.0, 100, 300), *(Sender(f"other {n}", 1_600.0) for n in range(5))]
    before = Fleet(rules, quiet, seed=3).run(until_s=400.0, count_from_s=40.0)
    during = Fleet(rules, [*quiet, Sender("other 0", FLOOD)], seed=3).run(until_s=400.0, count_from_s=40.0)
    assert during.mean_wait("victim") <= 1.5 * before.mean_wait("victim")


def test_first_come_first_served_would_not_hold_a_flood_back() -> None:
    """The control of the tests above: all senders are one tenant, so there are no turns between them."""
    rules = config(queue={"most_wait_s": 10.0})
    quiet = [Sender("all", 800.0 + n) for n in range(6)]
    before = Fleet(rules, quiet, seed=3).run(until_s=300.0, count_from_s=60.0)
    during = Fleet(rules, [*quiet, Sender("all", FLOOD)], seed=3).run(until_s=300.0, count_from_s=60.0)
    assert during.p99_ttft("all") > 3 * before.p99_ttft("all")


def test_aging_brings_a_worse_class_through_a_better_one_that_never_pauses() -> None:
    rules = config(queue={"aging_s": 2.0, "most_wait_s": 60.0})
    senders = [Sender("busy", 16_000.0, priority="interactive"), Sender("night", 400.0, priority="batch")]
    report = Fleet(rules, senders).run(until_s=300.0, count_from_s=30.0)
    assert report.refused["night"] == 0
    assert max(report.waits["night"]) < 15.0


def test_without_aging_the_worse_class_would_starve() -> None:
    rules = config(queue={"aging_s": 10_000.0, "most_wait_s": 60.0})
    senders = [Sender("busy", 16_000.0, priority="interactive"), Sender("night", 400.0, priority="batch")]
    report = Fleet(rules, senders).run(until_s=300.0, count_from_s=70.0)
    assert report.waits["night"] == []


def test_a_better_class_waits_only_for_a_seat() -> None:
    senders = [Sender("busy", 24_000.0, priority="batch"), Sender("user", 2_000.0, priority="interactive")]
    report = Fleet(config(queue={"aging_s": 50.0}), senders).run(until_s=200.0, count_from_s=20.0)
    assert report.mean_wait("user") < 0.3 < 10 < report.mean_wait("busy")
