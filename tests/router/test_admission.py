"""Admission, event by event: what runs, waits or is refused, and with which words and numbers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config_admission import AdmissionConfig
from cluster.errors import DeadlineExceeded, DeadlineUnreachable, InvalidRequest, Overloaded, TenantLimited
from cluster.quota import Denied, Granted
from router.admission import Admission
from router.admission_events import AdmissionAction, Admit, Arrival, GiveBack, Occupancy, Queue, Refuse


def gate(seats: int = 1, **sections: Any) -> Admission:
    return Admission(AdmissionConfig.model_validate(sections), running_requests=seats)


def arrival(request_id: str, tenant: str = "a", tokens: int = 100, priority: str = "", **more: Any) -> Arrival:
    return Arrival(request_id, tenant, priority, tokens, **more)


def admitted(actions: list[AdmissionAction]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Admit)]


def refusals(actions: list[AdmissionAction]) -> dict[str, Exception]:
    return {action.request_id: action.error for action in actions if isinstance(action, Refuse)}


def order_of(admission: Admission, running: str) -> list[str]:
    """Ends what runs, one after another, until nobody waits."""
    order = [running]
    while follower := admitted(admission.finish(order[-1], 100, 0.0)):
        order += follower
    admission.check_integrity()
    return order[1:]


def test_a_request_runs_at_once_while_there_is_room_and_waits_when_there_is_none() -> None:
    admission = gate(seats=2)
    assert admission.submit(arrival("1"), 0.0) == [Admit("1")]
    assert admission.submit(arrival("2"), 0.0) == [Admit("2")]
    assert admission.submit(arrival("3"), 0.0) == [Queue("3")]
    assert admission.finish("1", 100, 5.0) == [Admit("3")]
    assert admission.occupancy == Occupancy(0, 0, 2, 200)


def test_running_tokens_are_bounded_but_for_a_request_that_runs_alone() -> None:
    admission = gate(seats=9, running_tokens=1_000)
    assert admitted(admission.submit(arrival("huge", tokens=5_000), 0.0)) == ["huge"]
    assert admitted(admission.submit(arrival("1", tokens=600), 0.0)) == []
    assert admitted(admission.submit(arrival("2", tokens=600), 0.0)) == []
    assert admitted(admission.finish("huge", 0, 1.0)) == ["1"]
    assert admitted(admission.finish("1", 0, 1.0)) == ["2"]


def test_an_id_is_used_once() -> None:
    admission = gate()
    for request_id in ("runs", "waits"):
        admission.submit(arrival(request_id), 0.0)
        with pytest.raises(ValueError, match="was submitted before"):
            admission.submit(arrival(request_id), 0.0)


def test_a_better_class_goes_first_and_tenants_take_turns_within_it() -> None:
    admission = gate(quantum_tokens=100)
    admission.submit(arrival("first"), 0.0)
    for name, tenant, priority in [
        ("b1", "b", "batch"), ("a1", "a", ""), ("a2", "a", ""), ("c1", "c", ""), ("i1", "b", "interactive"),
    ]:  # fmt: skip
        admission.submit(arrival(name, tenant, priority=priority), 0.0)
    assert order_of(admission, "first") == ["i1", "a1", "c1", "a2", "b1"]


def test_a_tenant_with_twice_the_weight_gets_two_turns_for_one() -> None:
    admission = gate(tenants={"big": {"weight": 2.0}}, quantum_tokens=100)
    admission.submit(arrival("first", "other"), 0.0)
    for n in range(4):
        admission.submit(arrival(f"small {n}", "small"), 0.0)
        admission.submit(arrival(f"big {n}", "big"), 0.0)
    order = [name.split()[0] for name in order_of(admission, "first")]
    assert order[:6].count("big") == 4


def test_a_request_moves_up_by_a_class_each_time_that_better_ones_keep_it_waiting() -> None:
    admission = gate(queue={"aging_s": 10.0, "most_wait_s": 100.0}, quantum_tokens=100)
    admission.submit(arrival("first"), 0.0)
    admission.submit(arrival("old", "x", priority="batch"), 0.0)
    admission.submit(arrival("young", "y", priority="standard"), 9.0)
    assert admission.on_time(19.0) == []
    admission.submit(arrival("new", "z", priority="interactive"), 20.0)
    assert admitted(admission.finish("first", 100, 20.5)) == ["new"]
    admission.submit(arrival("newer", "z", priority="interactive"), 21.0)
    admission.on_time(31.0)
    admission.submit(arrival("newest", "z", priority="interactive"), 31.0)
    assert order_of(admission, "new") == ["newer", "young", "old", "newest"]


def test_what_waits_for_others_of_its_class_stays_there_however_long() -> None:
    admission = gate(queue={"aging_s": 10.0, "most_wait_s": 100.0}, quantum_tokens=100)
    admission.submit(arrival("first"), 0.0)
    for n in range(4):
        admission.submit(arrival(f"flood {n}", "flood"), 0.0)
    assert admission.on_time(50.0) == []
    admission.submit(arrival("fresh", "other"), 50.0)
    assert order_of(admission, "first").index("fresh") <= 1


def test_a_request_that_waited_too_long_is_refused() -> None:
    admission = gate(queue={"most_wait_s": 30.0})
    admission.submit(arrival("first"), 0.0)
    admission.submit(arrival("patient"), 1.0)
    assert admission.on_time(30.9) == []
    error = refusals(admission.on_time(31.0))["patient"]
    assert isinstance(error, Overloaded)
    assert str(error) == "no room in 30 s: try again later"
    assert error.retry_after_s == 30.0


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_reason() -> None:
    admission = gate(cold_tokens_per_s=1_000.0)
    admission.submit(arrival("first"), 100.0)
    admission.submit(arrival("queued", tokens=5_000), 100.0)
    error = refusals(admission.submit(arrival("late", deadline=104.0), 100.0))["late"]
    assert isinstance(error, DeadlineUnreachable)
    assert "the queue alone takes 5.0 s, 1.0 s more than the deadline leaves" in str(error)
    assert admission.submit(arrival("early enough", deadline=105.5), 100.0)[-1:] == [Queue("early enough")]


def test_with_room_only_a_deadline_that_has_passed_cannot_be_met() -> None:
    admission = gate()
    assert admitted(admission.submit(arrival("1", deadline=2.0), 2.0)) == ["1"]
    assert refusals(admission.submit(arrival("2", deadline=1.0), 2.0)).keys() == {"2"}


def test_a_queued_request_whose_deadline_comes_too_near_is_ended() -> None:
    admission = gate()
    admission.submit(arrival("first"), 0.0)
    admission.submit(arrival("hurried", deadline=5.0), 0.0)
    assert admission.on_time(4.9) == []
    assert isinstance(refusals(admission.on_time(5.0))["hurried"], DeadlineExceeded)


def test_the_tenants_own_limit_and_the_clusters_are_told_apart() -> None:
    admission = gate(queue={"max_requests": 1})
    over = admission.submit(arrival("over", verdict=Denied("requests", 2.5)), 0.0)
    error = refusals(over)["over"]
    assert isinstance(error, TenantLimited)
    assert (str(error), error.retry_after_s) == (
        "tenant a is over its limit of requests a second: try again in 2.5 s",
        2.5,
    )
    admission.submit(arrival("runs"), 0.0)
    admission.submit(arrival("waits"), 0.0)
    full = refusals(admission.submit(arrival("no room"), 0.0))["no room"]
    assert isinstance(full, Overloaded)
    assert "1 requests of 100 tokens wait already" in str(full)


def test_the_newest_of_the_heaviest_makes_room_for_a_lighter_tenant() -> None:
    admission = gate(queue={"max_requests": 3})
    admission.submit(arrival("first"), 0.0)
    for n in range(3):
        admission.submit(arrival(f"flood {n}", "flood"), 0.0)
    actions = admission.submit(arrival("light", "light"), 0.0)
    assert refusals(actions).keys() == {"flood 2"}
    assert isinstance(actions[-1], Queue)
    assert refusals(admission.submit(arrival("flood 3", "flood"), 0.0)).keys() == {"flood 3"}
    admission.check_integrity()


def test_a_newcomer_that_cannot_get_room_enough_pushes_nobody_out() -> None:
    admission = gate(queue={"max_tokens": 1_000})
    admission.submit(arrival("first"), 0.0)
    admission.submit(arrival("x1", "x", 400), 0.0)
    admission.submit(arrival("x2", "x", 400), 0.0)
    assert refusals(admission.submit(arrival("y1", "y", 700), 0.0)).keys() == {"y1"}
    assert refusals(admission.submit(arrival("too large", "z", 1_001), 0.0)).keys() == {"too large"}
    assert admission.occupancy.queued_requests == 2
    admission.check_integrity()


def test_a_better_class_pushes_a_worse_one_out_but_for_its_reserve() -> None:
    admission = gate(queue={"max_requests": 10, "class_reserve": 0.2})
    admission.submit(arrival("first"), 0.0)
    for n in range(10):
        admission.submit(arrival(f"batch {n}", "night", priority="batch"), 0.0)
    gone: list[str] = []
    for n in range(20):
        gone += refusals(admission.submit(arrival(f"user {n}", f"t{n}", priority="interactive"), 0.0))
    assert [name for name in gone if name.startswith("batch")] == [f"batch {n}" for n in range(9, 1, -1)]
    assert len([name for name in gone if name.startswith("user")]) == 12


def test_a_class_below_its_reserve_gets_in_although_better_ones_fill_the_queue() -> None:
    admission = gate(queue={"max_requests": 10, "class_reserve": 0.2})
    admission.submit(arrival("first"), 0.0)
    for n in range(10):
        admission.submit(arrival(f"user {n}", f"t{n}", priority="interactive"), 0.0)
    refused = [refusals(admission.submit(arrival(f"b{n}", "night", priority="batch"), 0.0)) for n in range(4)]
    assert [next(iter(gone)).startswith("user") for gone in refused] == [True, True, True, False]


def test_an_aged_request_is_the_last_to_make_room() -> None:
    admission = gate(queue={"max_requests": 3, "aging_s": 5.0})
    admission.submit(arrival("first"), 0.0)
    admission.submit(arrival("old", "flood", priority="batch"), 0.0)
    for n in range(2):
        admission.submit(arrival(f"new {n}", "flood"), 4.0)
    admission.on_time(9.0)
    assert refusals(admission.submit(arrival("light", "light"), 9.5)).keys() == {"new 1"}


def test_what_is_cached_goes_first_but_passes_nobody_more_often_than_allowed() -> None:
    admission = gate(reorder={"window": 4, "most_overtakes": 2})
    admission.submit(arrival("first"), 0.0)
    for n in range(6):
        admission.submit(arrival(f"cold {n}"), 0.0)
    for n in range(3):
        admission.on_cached(f"cold {n + 1}", 50 + n)
    admission.on_cached("gone", 9)
    assert set(admission.next_up()) == {"cold 0", "cold 1", "cold 2", "cold 3"}
    order = order_of(admission, "first")
    assert order == ["cold 3", "cold 2", "cold 0", "cold 1", "cold 4", "cold 5"]


def test_cancelling_frees_what_was_held_and_lets_the_next_one_in() -> None:
    admission = gate()
    for name in ("1", "2", "3"):
        admission.submit(arrival(name), 0.0)
    assert admission.cancel("2", 1.0) == []
    assert admission.cancel("1", 1.0) == [Admit("3")]
    assert admission.cancel("2", 1.0) == admission.finish("1", 0, 1.0) == []
    admission.cancel("3", 2.0)
    assert admission.occupancy == Occupancy(0, 0, 0, 0)


def test_a_claim_is_given_back_once_with_what_was_not_used() -> None:
    admission = gate(queue={"max_requests": 1})
    for name in ("runs", "waits", "refused"):
        actions = admission.submit(arrival(name, verdict=Granted()), 0.0)
    back = [action.returned for action in actions if isinstance(action, GiveBack)]
    assert [(r.claim_id, r.unused_tokens, r.unused_requests) for r in back] == [("refused", 100, 1)]
    back = [action.returned for action in admission.finish("runs", 30, 1.0) if isinstance(action, GiveBack)]
    assert [(r.claim_id, r.unused_tokens, r.unused_requests) for r in back] == [("runs", 70, 0)]
    assert not any(isinstance(action, GiveBack) for action in admission.finish("runs", 30, 1.0))


@pytest.mark.parametrize(
    ("priority", "says"),
    [("urgent", "priority 'urgent': not one that you may use; valid: standard, batch"), ("interactive", "valid:")],
)
def test_a_class_that_the_tenant_may_not_use_is_refused_with_the_valid_ones(priority: str, says: str) -> None:
    admission = gate(tenants={"a": {"classes": ["standard", "batch"]}})
    with pytest.raises(InvalidRequest) as refused:
        admission.submit(arrival("1", priority=priority), 0.0)
    assert says in str(refused.value)
    assert admission.rank_of("a", "batch") == 2
    assert admission.rank_of("unknown tenant", "") == 1


def test_more_room_lets_more_in_and_less_room_throws_nobody_out() -> None:
    admission = gate(seats=1)
    for n in range(4):
        admission.submit(arrival(str(n)), 0.0)
    admission.bound(3)
    assert admitted(admission.on_time(1.0)) == ["1", "2"]
    admission.bound(1)
    assert admission.on_time(2.0) == []
    assert admitted(admission.finish("0", 100, 3.0)) == []
    assert admission.occupancy.running_requests == 2


def test_prompts_for_so_much_computing_start_and_the_next_waits_for_a_first_token() -> None:
    admission = gate(seats=10)
    admission.bound(10, starting_tokens=250)
    for n in range(4):
        admission.submit(arrival(str(n), prompt_tokens=100), 0.0)
    assert admission.occupancy == Occupancy(2, 200, 2, 200, 200)
    assert admitted(admission.started("0", 1.0)) == ["2"]
    assert admission.started("0", 2.0) == [], "it starts once"
    assert admitted(admission.cancel("1", 3.0)) == ["3"]
    admission.check_integrity()


def test_a_prompt_that_is_longer_than_all_may_start_alone() -> None:
    admission = gate(seats=10)
    admission.bound(10, starting_tokens=50)
    assert admitted(admission.submit(arrival("0", prompt_tokens=100), 0.0)) == ["0"]
    assert admitted(admission.submit(arrival("1", prompt_tokens=1), 0.0)) == []
    assert admitted(admission.started("0", 1.0)) == ["1"]


def test_who_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back() -> None:
    admission = gate(queue={"most_wait_s": 5.0}, cold_tokens_per_s=10.0)
    admission.submit(arrival("0"), 0.0)
    assert isinstance(admission.submit(arrival("1", tokens=60), 0.0)[-1], Queue)
    refused = refusals(admission.submit(arrival("2", tokens=60), 0.0))["2"]
    assert isinstance(refused, Overloaded)
    assert refused.retry_after_s == pytest.approx(6.0)
    assert "the queue is 6 s long" in str(refused)


def test_the_expected_wait_follows_the_measured_rate() -> None:
    admission = gate(cold_tokens_per_s=10.0, queue={"most_wait_s": 10_000.0})
    admission.submit(arrival("0"), 0.0)
    for n in range(1, 200):
        admission.submit(arrival(str(n)), 0.0)
    for n in range(100):
        admission.finish(str(n), 100, (n + 1) * 0.1)  # 1,000 tokens a second
    refused = refusals(admission.submit(arrival("next", deadline=10.0), 10.0))["next"]
    assert isinstance(refused, DeadlineUnreachable)
    assert refused.retry_after_s == pytest.approx(9.9, rel=0.25)
