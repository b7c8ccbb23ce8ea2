"""Silence of workers: noticed when it lasts, excused where it was the router that did not listen."""

from __future__ import annotations

from router.silence import SilenceWatch


def watching(*worker_ids: str) -> SilenceWatch:
    watch = SilenceWatch(silent_after_s=3.0, most_at_once_s=0.5)
    for worker_id in worker_ids:
        watch.heard(worker_id)
    return watch


def test_who_says_nothing_for_so_long_is_named_and_who_speaks_is_not() -> None:
    watch = watching("quiet", "lively")
    for _ in range(11):
        assert watch.passed(0.25) == []
    watch.heard("lively")
    assert watch.passed(0.25) == ["quiet"]


def test_of_whom_nothing_was_ever_heard_nothing_is_expected() -> None:
    watch = watching()
    assert watch.passed(0.5) == []
    watch.heard("w")
    watch.forget("w")
    watch.forget("w")
    assert [watch.passed(0.5) for _ in range(10)] == [[]] * 10


def test_a_router_that_was_stopped_itself_blames_nobody() -> None:
    watch = watching("w")
    assert watch.passed(3_600.0) == []
    watch.heard("w")
    assert watch.passed(0.25) == []
