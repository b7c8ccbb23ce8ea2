"""The ring of events: numbers, repeats, bounds."""

from __future__ import annotations

from cluster.engine import Role
from router.fleet_events import FleetEvents
from router.seen import Seen


def test_events_carry_the_role_of_a_worker_that_has_joined() -> None:
    events = FleetEvents(lambda: 5.0)
    events.add(Seen.LEFT, "stranger")
    events.joined("d1", Role.DECODE, "epoch 1")
    events.add(Seen.STALLED, "d1", "no step")
    told = [(event.number, event.kind, event.worker_id, event.role, event.at_unix_s) for event in events.since()]
    assert told == [
        (1, Seen.LEFT, "stranger", None, 5.0),
        (2, Seen.JOINED, "d1", Role.DECODE, 5.0),
        (3, Seen.STALLED, "d1", Role.DECODE, 5.0),
    ]


def test_equal_events_in_a_row_are_counted_as_one() -> None:
    events = FleetEvents(most=3)
    events.joined("d1", Role.DECODE, "epoch 1")
    for number in range(1_000):
        events.add(Seen.RECOVERED, "d1", "lost: gone", f"r{number}")
    events.add(Seen.RECOVERED, "d2", "lost: gone")
    assert [(event.kind, event.times) for event in events.since()] == [
        (Seen.JOINED, 1),
        (Seen.RECOVERED, 1_000),
        (Seen.RECOVERED, 1),
    ]


def test_the_oldest_leave_and_a_reader_asks_for_what_came_since() -> None:
    events = FleetEvents(most=3)
    for number in range(5):
        events.add(Seen.READY, f"w{number}")
    assert [event.number for event in events.since()] == [3, 4, 5]
    assert [event.number for event in events.since(4)] == [5]
    assert [event.number for event in events.since(limit=2)] == [4, 5]


def test_a_state_of_a_newer_version_is_an_event_too() -> None:
    assert Seen.of("draining") is Seen.DRAINING
    assert Seen.of("meditating") is Seen.OTHER
