"""The preStop hook of a worker pod, on a /proc of files and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.pod_stop import main, stop

PORT = 8000
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue\n"
TO_CLIENT = "   0: 0100007F:1F40 0200007F:D431 01 00000000:00000000\n"
LISTENING = "   1: 00000000:1F40 00000000:0000 0A 00000000:00000000\n"
TO_PEER = "   2: 0100007F:D431 0200007F:1F40 01 00000000:00000000\n"


class Pod:
    """What happens at which second is said by `at`; `announced` is what Ray has been told."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder
        self.clock = 0.0
        self.announced: list[int] = []
        self.at: dict[float, Callable[[], None]] = {}
        (folder / "net").mkdir()
        self.connections(LISTENING, TO_PEER)

    def connections(self, *lines: str) -> None:
        (self.proc / "net" / "tcp").write_text(HEADER + "".join(lines))

    def process(self, pid: int, title: str) -> Path:
        command = self.proc / str(pid) / "cmdline"
        command.parent.mkdir()
        command.write_bytes(title.encode())
        return command

    def announce(self, within_s: int) -> str:
        self.announced.append(within_s)
        return ""

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        for second in [each for each in self.at if each <= self.clock]:
            self.at.pop(second)()

    def stop(self, within_s: int = 60, announce: Callable[[int], str] | None = None) -> str:
        return stop(within_s, PORT, announce or self.announce, self.proc, lambda: self.clock, self.sleep)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_an_empty_pod_ends_at_once_but_ray_is_told(pod: Pod) -> None:
    pod.process(7, "ray::IDLE")
    assert pod.stop() == ""
    assert (pod.announced, pod.clock) == ([60], 0.0)


def test_the_pod_stays_until_its_replica_has_gone(pod: Pod) -> None:
    replica = pod.process(9, "ray::ServeReplica:baton:decode")
    pod.at[20.0] = replica.unlink
    assert pod.stop() == ""
    assert pod.clock == 20.0


def test_the_pod_stays_until_the_last_stream_through_its_proxy_has_ended(pod: Pod) -> None:
    pod.connections(LISTENING, TO_CLIENT)
    pod.at[30.0] = lambda: pod.connections(LISTENING)
    assert pod.stop() == ""
    assert pod.clock == 30.0


def test_a_pod_that_is_busy_at_its_end_says_what_to_change(pod: Pod) -> None:
    pod.process(9, "ray::ServeReplica:baton:decode")
    assert "still busy after 60 s: raise terminationGracePeriodSeconds" in pod.stop()
    assert pod.clock == 60.0


def test_where_ray_refuses_only_the_clients_are_waited_for(pod: Pod) -> None:
    pod.process(9, "ray::ServeReplica:baton:decode")
    pod.connections(TO_CLIENT)
    pod.at[10.0] = lambda: pod.connections()
    assert pod.stop(announce=lambda _: "ray drain-node: not accepted") == "ray drain-node: not accepted"
    assert pod.clock == 10.0


def test_ray_hears_first_that_the_pod_goes_and_is_stopped_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "said"
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$1" "$2" >> {said}\n')
    ray.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--within", "0", "--http-port", "1"]) == 1  # no time at all
    assert said.read_text().splitlines() == ["drain-node --reason", "stop --grace-period"]


def test_a_refusal_reaches_kubernetes_as_the_hooks_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where no `ray` is
    assert main(["--within", "0", "--http-port", "1"]) == 1
    assert "ray drain-node" in capsys.readouterr().err
