"""Slow workers: found against their pool and not their work, left alone for longer each time, never too many."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from cluster.config_placement import SlowWorkersConfig
from router.slow_workers import SlowWorkers, Work

CONFIG = SlowWorkersConfig(factor=5.0, floor_s=0.05, least=16, leave_s=10.0, leave_most_s=35.0, share=0.34)
USUAL_S = 0.1


class Pool:
    """Workers whose speeds are given; `work` has each do some and looks at what is decided."""

    def __init__(self, times: Mapping[str, float], config: SlowWorkersConfig = CONFIG) -> None:
        self.now = 0.0
        self.draw = random.Random(1)
        self.times = dict(times)
        self.slow = SlowWorkers(config)
        for worker_id in times:
            self.slow.add(worker_id, worker_id[0])

    def work(self, seconds: float = 4.0, each_s: float = 0.2, usual_s: float = USUAL_S) -> dict[str, float]:
        """By worker, until when it is to be left alone."""
        decided: dict[str, float] = {}
        for _ in range(round(seconds / each_s)):
            self.now += each_s
            for worker_id, times in self.times.items():
                noise = self.draw.choice((0.8, 1.0, 1.2, 30.0 if self.draw.random() < 0.2 else 1.0))
                self.slow.took(worker_id, Work.TOKEN, times * usual_s * noise, usual_s, self.now)
            decided |= {left.worker_id: left.until for left in self.slow.on_time(self.now)}
        return decided


def test_the_one_that_is_far_from_its_pool_is_left_alone_and_says_why() -> None:
    pool = Pool({"p1": 1.0, "p2": 1.2, "p3": 8.0})
    for _ in range(CONFIG.least):
        for worker_id, times in pool.times.items():
            pool.slow.took(worker_id, Work.PREFILL, times * USUAL_S, USUAL_S, 0.5)
    (left,) = pool.slow.on_time(1.0)
    assert (left.worker_id, left.until) == ("p3", 11.0)
    assert "a prefill takes 7.3 times as long as elsewhere in its pool" in left.reason
    assert pool.slow.left_alone == 1


@pytest.mark.parametrize("times", [4.0, 1.0])
def test_within_the_factor_and_with_bad_moments_now_and_then_it_stays(times: float) -> None:
    assert Pool({"p1": 1.0, "p2": 1.0, "p3": times}).work(60.0) == {}


def test_a_pool_that_is_slow_as_a_whole_keeps_all_its_workers() -> None:
    assert Pool({"p1": 50.0, "p2": 50.0, "p3": 50.0}).work(30.0) == {}


def test_other_pools_are_no_measure() -> None:
    assert Pool({"p1": 9.0, "p2": 9.0, "p3": 9.0, "d1": 1.0, "d2": 1.0, "d3": 1.0}).work(30.0) == {}


def test_what_is_too_little_to_matter_does_not() -> None:
    assert Pool({"p1": 1.0, "p2": 1.0, "p3": 9.0}).work(30.0, usual_s=0.001) == {}


@pytest.mark.parametrize(("workers", "most"), [(1, 0), (2, 0), (3, 1), (6, 2), (7, 2)])
def test_no_more_than_a_share_of_a_pool_and_never_the_last(workers: int, most: int) -> None:
    pool = Pool({f"p{number}": 1.0 for number in range(workers)})
    pool.times |= {f"p{number}": 20.0 + number for number in range((workers + 1) // 2 - (workers > 1))}
    assert len(pool.work()) == most


def test_the_slowest_go_first() -> None:
    pool = Pool({"p1": 1.0, "p2": 1.0, "p3": 1.0, "p4": 30.0, "p5": 20.0})
    assert list(pool.work()) == ["p4"]


def test_workers_that_take_nothing_new_anyway_make_no_room_for_it() -> None:
    pool = Pool({"p1": 1.0, "p2": 1.0, "p3": 20.0})
    pool.slow.set_ready("p1", False)
    assert pool.work() == {}


def test_it_is_left_alone_for_longer_each_time_and_for_the_first_time_again_once_it_has_recovered() -> None:
    pool = Pool({"p1": 1.0, "p2": 1.0, "p3": 20.0})
    spans = []
    for _ in range(4):
        until = pool.work()["p3"]
        spans.append(until - pool.now)
        assert pool.work() == {}, "it is not judged while it is left alone"
        pool.now = until
    assert [round(span, -1) for span in spans] == pytest.approx([10, 20, 30, 30], abs=5)
    pool.times["p3"] = 1.0
    assert pool.work(20.0) == {}
    pool.times["p3"] = 20.0
    until = pool.work(12.0)["p3"]
    assert until - pool.now <= CONFIG.leave_s


def test_old_measurements_and_few_of_them_say_nothing() -> None:
    pool = Pool({"p1": 1.0, "p2": 1.0, "p3": 20.0})
    assert pool.work(2.8) == {}
    pool.now += 3_600.0
    assert pool.slow.on_time(pool.now) == []
    assert pool.work(2.8) == {}


def test_who_is_gone_is_forgotten_and_who_comes_back_begins_anew() -> None:
    pool = Pool({"p1": 1.0, "p2": 1.0, "p3": 20.0})
    pool.work(2.8)
    pool.slow.remove("p3")
    pool.slow.took("p3", Work.TOKEN, 9.0, USUAL_S, pool.now)
    pool.slow.add("p3", "p")
    pool.times["p3"] = 1.0
    assert pool.work() == {}
