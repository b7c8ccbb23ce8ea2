"""Pins of sessions: bounded, ageing, and told to others only when that says something new."""

from __future__ import annotations

from cluster.pin_table import PinTable


def test_a_pin_lasts_as_long_as_it_is_used() -> None:
    pins = PinTable(keep_s=100.0, most=10)
    pins.put("s", "w", 0.0)
    pins.put("s", "w", 90.0)
    assert pins.get("s", 189.0) == "w"
    assert pins.get("s", 190.0) is None


def test_others_hear_of_a_change_and_now_and_then_of_a_pin_in_use() -> None:
    pins = PinTable(keep_s=100.0, most=10)
    told = [now for now in range(0, 100, 5) if pins.put("s", "w", float(now))]
    assert told == [0, 25, 50, 75]
    assert pins.put("s", "other", 96.0)


def test_the_least_recently_used_leave_first() -> None:
    pins = PinTable(keep_s=100.0, most=2)
    for name in ("a", "b", "a", "c"):
        pins.put(name, "w", 1.0)
    assert [pins.get(name, 2.0) for name in "abc"] == ["w", None, "w"]
    assert [session_id for session_id, _ in pins.newest(1)] == ["c"]


def test_a_newer_choice_of_our_own_stands_against_what_is_heard() -> None:
    pins = PinTable(keep_s=100.0, most=10)
    pins.put("s", "mine", 10.0)
    pins.hear("s", "theirs", 9.0)
    assert pins.get("s", 11.0) == "mine"
    pins.hear("s", "theirs", 12.0)
    assert pins.get("s", 13.0) == "theirs"
