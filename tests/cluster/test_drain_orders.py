"""Orders to drain, said by several routers in any order, late and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.drain_orders import DrainOrder, DrainOrders


def order(drain_id: str, deadline: float = 60.0) -> DrainOrder:
    return DrainOrder(drain_id, deadline, "new disk")


def test_an_order_counts_once_however_often_it_is_said() -> None:
    orders = DrainOrders()
    assert orders.give(order("a", 60.0))
    assert not orders.give(order("a", 63.0))  # from a router that took three seconds longer to say it
    assert orders.current == order("a", 60.0)


def test_a_new_order_changes_the_deadline_and_an_older_one_does_not_come_back() -> None:
    orders = DrainOrders()
    orders.give(order("a", 60.0))
    assert orders.give(order("b", 10.0))
    assert not orders.give(order("a", 60.0))
    assert orders.current == order("b", 10.0)


def test_what_is_undone_stays_undone_also_for_routers_that_hear_of_it_later() -> None:
    orders = DrainOrders()
    orders.give(order("a"))
    assert orders.undo("a")
    assert not orders.give(order("a"))
    assert not orders.undo("a")
    assert orders.current is None


def test_an_undoing_that_comes_before_its_order_holds() -> None:
    orders = DrainOrders()
    assert not orders.undo("a")
    assert not orders.give(order("a"))


def test_undoing_an_older_order_leaves_the_newer_one() -> None:
    orders = DrainOrders()
    orders.give(order("a"))
    orders.give(order("b"))
    assert not orders.undo("a")
    assert orders.current == order("b")


def test_without_an_id_whatever_holds_is_undone() -> None:
    orders = DrainOrders()
    orders.give(order("a"))
    assert orders.undo("")
    assert orders.current is None


def test_the_owner_is_not_turned_back_and_keeps_an_earlier_deadline() -> None:
    orders = DrainOrders()
    orders.give(order("a", 30.0))
    orders.stop(60.0, "its replica stops")
    assert orders.current == DrainOrder("", 30.0, "its replica stops")
    assert not orders.undo("a")
    assert not orders.undo("")
    assert not orders.give(order("b", 600.0))
    orders.stop(5.0, "now")
    assert orders.current == DrainOrder("", 5.0, "now")


_IDS = st.sampled_from("abc")
_SAID = st.one_of(st.tuples(st.just("give"), _IDS), st.tuples(st.just("undo"), _IDS))


@given(st.lists(_SAID))
def test_what_was_undone_never_holds_again(said: list[tuple[str, str]]) -> None:
    orders, undone = DrainOrders(), set[str]()
    for what, drain_id in said:
        if what == "give":
            orders.give(order(drain_id))
        else:
            orders.undo(drain_id)
            undone.add(drain_id)
        assert orders.current is None or orders.current.drain_id not in undone
