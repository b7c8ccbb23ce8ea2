"""What a watcher believes across incarnations of the directory."""

from __future__ import annotations

from cluster.continuity import Continuity, View
from cluster.engine import Role
from cluster.membership import WorkerRecord


def record(worker_id: str, epoch: int = 1) -> WorkerRecord:
    return WorkerRecord(worker_id, Role.PREFILL, epoch, f"{worker_id}:{epoch}")


A, B, C = record("a"), record("b"), record("c")


def shown(continuity: Continuity, view: View) -> tuple[WorkerRecord, ...] | None:
    membership = continuity.update(view)
    return None if membership is None else membership.workers


def test_the_first_view_is_shown_even_when_it_is_empty_and_a_view_without_news_is_not() -> None:
    continuity = Continuity()
    assert shown(continuity, View("i", 1, False, ())) == ()
    assert shown(continuity, View("i", 2, False, ())) is None
    assert shown(continuity, View("i", 3, False, (A,))) == (A,)


def test_a_fresh_directory_drops_nobody_while_it_warms() -> None:
    continuity = Continuity()
    shown(continuity, View("old", 9, False, (A, B)))
    assert shown(continuity, View("new", 1, True, ())) is None
    assert shown(continuity, View("new", 2, True, (C,))) == (A, B, C)


def test_once_warm_a_fresh_directory_is_the_truth() -> None:
    continuity = Continuity()
    shown(continuity, View("old", 9, False, (A, B)))
    shown(continuity, View("new", 2, True, (A,)))
    assert shown(continuity, View("new", 2, False, (A,))) == (A,)


def test_a_worker_that_leaves_while_the_directory_warms_is_dropped() -> None:
    continuity = Continuity()
    shown(continuity, View("old", 9, False, (A, B)))
    assert shown(continuity, View("new", 1, True, (), withdrawn=(("a", 1),))) == (B,)


def test_while_warming_the_newer_epoch_wins_on_either_side() -> None:
    continuity = Continuity()
    shown(continuity, View("old", 9, False, (record("a", 2), record("b", 1))))
    announced = (record("a", 1), record("b", 2))
    assert shown(continuity, View("new", 2, True, announced)) == (record("a", 2), record("b", 2))


def test_versions_grow_although_the_directorys_own_start_again() -> None:
    continuity = Continuity()
    first = continuity.update(View("old", 50, False, (A,)))
    second = continuity.update(View("new", 2, False, (B,)))
    assert first is not None
    assert second is not None
    assert second.version > first.version
