"""Pins of sessions: renewed by use, forgotten with time, and never more than so many."""

from __future__ import annotations

from cluster.engine import Role
from router.session_pins import SessionPins


def test_a_pin_is_for_one_session_and_one_pool() -> None:
    pins = SessionPins(10, 60.0)
    pins.pin("s", Role.DECODE, "d1", 0.0)
    assert pins.get("s", Role.DECODE, 59.0) == "d1"
    assert pins.get("s", Role.PREFILL, 0.0) is None
    assert pins.get("t", Role.DECODE, 0.0) is None


def test_a_pin_lasts_from_its_last_use() -> None:
    pins = SessionPins(10, 60.0)
    pins.pin("s", Role.DECODE, "d1", 0.0)
    pins.pin("s", Role.DECODE, "d2", 50.0)
    assert pins.get("s", Role.DECODE, 109.0) == "d2"
    assert pins.get("s", Role.DECODE, 110.0) is None


def test_the_longest_unused_go_first_when_there_are_too_many() -> None:
    pins = SessionPins(2, 60.0)
    for session in ("a", "b", "a", "c"):
        pins.pin(session, Role.DECODE, "d", 0.0)
    assert [pins.get(session, Role.DECODE, 0.0) for session in "abc"] == ["d", None, "d"]
    assert len(pins) == 2


def test_expired_pins_take_no_memory_once_others_come() -> None:
    pins = SessionPins(1_000, 60.0)
    for i in range(100):
        pins.pin(f"s{i}", Role.DECODE, "d", 0.0)
    pins.pin("new", Role.DECODE, "d", 61.0)
    assert len(pins) == 1
