"""Orders for another configuration: carried out once, heard of by their sender, and void when that has died."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Config
from cluster.errors import StartFailed
from deploy import change_order
from deploy.change_order import _Order
from deploy.cluster_record import ClusterRecord, state_folder
from deploy.processes import started_at

FILE: dict[str, Any] = {"name": "mine", "model": {"path": "none"}}
WANTED = Config.model_validate(FILE)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def mine() -> ClusterRecord:
    return ClusterRecord.of_this_process("mine", "", "")


def left_behind(number: str = "1") -> Path:
    """The order of a process that has died: of its id, but with another start."""
    order = _Order(number, os.getpid(), (started_at(os.getpid()) or 0) - 1, 9.0, FILE)
    path = state_folder() / "mine.change"
    path.write_text(json.dumps(dataclasses.asdict(order)))
    return path


def left_files() -> list[str]:
    return sorted(path.name for path in state_folder().iterdir())


def never(config: Config, deadline_s: float) -> None:
    raise AssertionError("was carried out")


def owner_once(rung: threading.Event, change: Any) -> threading.Thread:
    """One turn of the owner, as soon as it is rung."""

    def turn() -> None:
        assert rung.wait(10)
        rung.clear()
        change_order.carry_out("mine", change)

    thread = threading.Thread(target=turn)
    thread.start()
    return thread


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    event = threading.Event()
    monkeypatch.setattr(os, "kill", lambda pid, number: event.set())
    return event


@pytest.mark.parametrize("failure", ["", "no room"])
def test_an_order_is_carried_out_by_the_owner_and_its_end_heard(failure: str, rung: threading.Event) -> None:
    taken: list[tuple[Config, float]] = []

    def change(config: Config, deadline_s: float) -> None:
        assert change_order.order_waits("mine")
        taken.append((config, deadline_s))
        if failure:
            raise RuntimeError(failure)

    owner = owner_once(rung, change)
    if failure:
        with pytest.raises(StartFailed, match=failure):
            change_order.order_change(mine(), WANTED, 20.0)
    else:
        change_order.order_change(mine(), WANTED, 20.0)
    owner.join(10)
    assert taken == [(WANTED, 20.0)]
    assert taken[0][0].model_fields_set == WANTED.model_fields_set
    assert not change_order.order_waits("mine")
    assert left_files() == []


def test_one_order_at_a_time(rung: threading.Event) -> None:
    living = _Order("1", os.getpid(), started_at(os.getpid()) or 0, 9.0, FILE)
    for held in (json.dumps(dataclasses.asdict(living)), ""):  # the second is just being written
        (state_folder() / "mine.change").write_text(held)
        with pytest.raises(change_order.ChangeUnderWay, match="under way"):
            change_order.order_change(mine(), WANTED, 1.0)
        assert not rung.is_set()


def test_what_a_dead_sender_left_is_never_carried_out(rung: threading.Event) -> None:
    left_behind()
    assert not change_order.order_waits("mine")
    change_order.carry_out("mine", never)
    assert left_files() == []


def test_a_sender_that_dies_meanwhile_leaves_nothing(rung: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_behind()
    died = False
    monkeypatch.setattr(_Order, "void", property(lambda _: died))

    def change(config: Config, deadline_s: float) -> None:
        nonlocal died
        assert path.exists()
        died = True

    change_order.carry_out("mine", change)
    assert died
    assert left_files() == []


def test_the_next_sender_has_the_owner_remove_what_a_dead_one_left(rung: threading.Event) -> None:
    left_behind()
    taken: list[Config] = []
    owner = owner_once(rung, never)

    def second_turn() -> None:
        owner.join(10)
        while not taken:  # it may be rung again before there is the next order
            owner_once(rung, lambda config, _: taken.append(config)).join(10)

    next_turn = threading.Thread(target=second_turn)
    next_turn.start()
    change_order.order_change(mine(), WANTED, 20.0)
    next_turn.join(10)
    assert taken == [WANTED]
    assert left_files() == []


def test_a_sender_that_gave_up_leaves_no_answer(rung: threading.Event) -> None:
    path = left_behind()
    order = json.loads(path.read_text()) | {"started": started_at(os.getpid())}
    path.write_text(json.dumps(order))
    change_order.carry_out("mine", lambda *_: path.unlink())
    assert left_files() == []


def test_an_owner_that_starts_forgets_what_was_ordered_of_the_one_before() -> None:
    living = _Order("1", os.getpid(), started_at(os.getpid()) or 0, 9.0, FILE)
    (state_folder() / "mine.change").write_text(json.dumps(dataclasses.asdict(living)))
    (state_folder() / "mine.changed").write_text("{}")
    change_order.await_orders("mine")
    assert not change_order.order_waits("mine")
    assert left_files() == []


def test_a_signal_before_the_owner_listens_ends_nothing_and_later_ones_are_heard_once() -> None:
    change_order.await_orders("mine")
    os.kill(os.getpid(), signal.SIGUSR1)  # would end this process
    with change_order.changes_heard():
        with pytest.raises(change_order.ChangeAsked):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)  # while the first one is seen to
    os.kill(os.getpid(), signal.SIGUSR1)
