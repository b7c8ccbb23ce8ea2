"""The progress rule: owed steps, idle times, recovery."""

from __future__ import annotations

from cluster.progress import ProgressWatch


def test_an_idle_engine_never_stalls() -> None:
    watch = ProgressWatch(10)
    assert watch.stalled_for(1_000) is None
    watch.work_came(0)
    watch.moved(5, work_left=False)
    assert watch.stalled_for(1_000) is None


def test_work_without_a_step_stalls_after_its_time_and_a_step_starts_it_anew() -> None:
    watch = ProgressWatch(10)
    watch.work_came(0)
    assert watch.stalled_for(9.9) is None
    assert watch.stalled_for(10) == 10
    watch.moved(12, work_left=True)
    assert watch.stalled_for(21) is None
    assert watch.stalled_for(22) == 10


def test_more_work_does_not_excuse_a_step_that_is_owed() -> None:
    watch = ProgressWatch(10)
    watch.work_came(0)
    watch.work_came(9)
    assert watch.stalled_for(10) == 10


def test_work_that_goes_away_is_owed_no_step() -> None:
    watch = ProgressWatch(10)
    watch.work_came(0)
    watch.work_gone()
    assert watch.stalled_for(100) is None


def test_time_in_which_nobody_could_look_is_not_the_engines() -> None:
    watch = ProgressWatch(10)
    watch.excuse(50, now=1)
    watch.work_came(0)
    watch.excuse(8, now=9)
    assert watch.stalled_for(17) is None
    assert watch.stalled_for(18) == 10
    watch.excuse(1_000, now=18)
    assert watch.stalled_for(28) == 10


def test_the_next_look_comes_when_it_may_have_stalled() -> None:
    watch = ProgressWatch(10)
    assert watch.next_look_s(5) == 10
    watch.work_came(5)
    assert watch.next_look_s(8) == 7
    assert watch.next_look_s(99) == 0
