"""A Ray whose node did not come up is started once more, and nothing of the first start is left."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import started_at
from deploy.ray_start import NODE_IS_LATE, start_ray

ROOT = Path(__file__).parents[2]
_LATE = f"The {NODE_IS_LATE}. This could happen because"


class Starts:
    """Each of `failures` fails one start, in whose course a process is started; the next start succeeds."""

    def __init__(self, *failures: str) -> None:
        self.failures = list(failures)
        self.left: list[subprocess.Popen[bytes]] = []
        self.count = 0
        self.told: list[str] = []

    def __call__(self) -> None:
        self.count += 1
        self.begin_process()
        if self.failures:
            raise Exception(self.failures.pop(0))

    def begin_process(self) -> None:
        self.left.append(subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]))

    def run(self, seconds: float = 60.0) -> None:
        start_ray(self, time.monotonic() + seconds, self.told.append)

    def alive(self) -> list[bool]:
        return [started_at(process.pid) is not None for process in self.left]

    def end(self) -> None:
        for process in self.left:
            process.kill()
            process.wait()


@pytest.fixture
def starts(request: pytest.FixtureRequest) -> Iterator[Starts]:
    made = Starts(*request.param)
    yield made
    made.end()


@pytest.mark.parametrize("starts", [(_LATE,)], indirect=True)
def test_a_late_node_is_started_once_more_and_the_user_hears_of_it(starts: Starts) -> None:
    starts.run()
    assert starts.count == 2
    assert starts.told == ["Ray's node did not come up: starting Ray once more"]


@pytest.mark.parametrize("starts", [(_LATE,)], indirect=True)
def test_what_the_first_start_left_is_ended_and_nothing_else_is(starts: Starts) -> None:
    starts.begin_process()
    starts.run()
    starts.left[1].wait(timeout=20)
    assert starts.alive() == [True, False, True]


@pytest.mark.parametrize("starts", [(_LATE, _LATE, _LATE)], indirect=True)
def test_a_second_late_node_is_an_error(starts: Starts) -> None:
    with pytest.raises(Exception, match=NODE_IS_LATE):
        starts.run()
    assert starts.count == 2


@pytest.mark.parametrize("starts", [(_LATE,)], indirect=True)
def test_no_second_start_begins_that_could_not_end_in_time(starts: Starts) -> None:
    with pytest.raises(Exception, match=NODE_IS_LATE):
        starts.run(seconds=1.0)
    assert (starts.count, starts.told) == (1, [])


@pytest.mark.parametrize("starts", [("Ray's port is taken",)], indirect=True)
def test_what_would_fail_again_is_not_tried_again(starts: Starts) -> None:
    with pytest.raises(Exception, match="port is taken"):
        starts.run()
    assert starts.count == 1


def test_ray_still_says_so_of_a_late_node() -> None:
    from ray._private.node import Node

    assert NODE_IS_LATE in inspect.getsource(Node.__init__)


# Ends the first node process that Ray starts, as soon as it is there.
_KILLED_ONCE = """
import json, os, signal, threading, time
from functools import partial
from pathlib import Path
import ray
from deploy.processes import children
from deploy.ray_start import start_ray

def kill_the_first_node():
    while True:
        for pid in children(os.getpid()):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\\0")[0].endswith(b"raylet/raylet"):
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.01)

threading.Thread(target=kill_the_first_node, daemon=True).start()
told = []
options = {"address": "local", "num_cpus": 1, "include_dashboard": False, "log_to_driver": False}
start_ray(partial(ray.init, **options), time.monotonic() + 300, told.append)
nodes = [node["Alive"] for node in ray.nodes()]
ray.shutdown()
print(json.dumps({"told": len(told), "nodes": nodes, "left": children(os.getpid())}))
"""


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_ray_whose_node_process_dies_at_its_start_comes_up_all_the_same() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _KILLED_ONCE],
        cwd=ROOT,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == {"told": 1, "nodes": [True], "left": []}
