"""Two hosts on one machine: two network namespaces joined by two cables, made here and removed here.

Each host has two interfaces, `fast0` for NIXL and `slow0` for everything else, of one name and one subnet on both. A
cable can lose what goes one way, be unplugged or be throttled. Nothing outside the two namespaces is touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FAST, SLOW = "fast0", "slow0"
_NETS = {FAST: "10.77.1", SLOW: "10.77.2"}
_NOWHERE = "02:00:00:00:00:00"  # a hardware address that neither end has
# Of the kernel's headers.
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_TOOLS = ("ip", "tc", "ss")
_CARRIER_S = 10.0


@dataclass(frozen=True)
class Host:
    """`number` is 1 or 2."""

    namespace: str
    number: int

    def address(self, cable: str) -> str:
        return f"{_NETS[cable]}.{self.number}"

    def listening(self) -> set[str]:
        """The addresses at which anyone on this host listens for TCP."""
        lines = _run("ip", "netns", "exec", self.namespace, "ss", "-Htln").splitlines()
        ends = [line.split()[3].rpartition(":")[0] for line in lines]
        return {end.strip("[]").removeprefix("::ffff:") for end in ends}

    def ip(self, *arguments: str) -> None:
        _run("ip", "-n", self.namespace, *arguments)

    def link(self, cable: str) -> str:
        """As the kernel describes it."""
        return _run("ip", "-n", self.namespace, "link", "show", "dev", cable)

    def tc(self, *arguments: str) -> None:
        _run("tc", "-n", self.namespace, *arguments)


@dataclass(frozen=True)
class TwoHosts:
    left: Host
    right: Host

    def lose(self, sender: Host, cable: str) -> None:
        """What `sender` puts on the cable is lost without a word; the other way all is well. Holds for connections
        that are open, too."""
        receiver = self.right if sender is self.left else self.left
        address = receiver.address(cable)
        sender.ip("neigh", "replace", address, "dev", cable, "lladdr", _NOWHERE, "nud", "permanent")

    def unplug(self, cable: str) -> None:
        """Both ends lose their carrier and their routes."""
        self.left.ip("link", "set", cable, "down")

    def throttle(self, sender: Host, cable: str, mib_per_s: float) -> None:
        rate = f"{int(mib_per_s * 8 * 2**20)}bit"
        sender.tc("qdisc", "replace", "dev", cable, "root", "tbf", "rate", rate, "burst", "128kb", "latency", "500ms")

    def mend(self) -> None:
        """As it was in the beginning."""
        for host, peer in ((self.left, self.right), (self.right, self.left)):
            for cable in (FAST, SLOW):
                host.ip("link", "set", cable, "up")
                host.ip("neigh", "replace", peer.address(cable), "dev", cable, "nud", "none")
                host.ip("neigh", "flush", "dev", cable)
                _run("tc", "-n", host.namespace, "qdisc", "del", "dev", cable, "root", may_fail=True)
        self.wait_for_carrier()

    def wait_for_carrier(self) -> None:
        """The kernel takes its time to say that an interface is up, and UCX does not see it before."""
        give_up = time.monotonic() + _CARRIER_S
        while not all("state UP" in host.link(cable) for host in (self.left, self.right) for cable in (FAST, SLOW)):
            assert time.monotonic() < give_up, "a cable between the two hosts does not come up"
            time.sleep(0.01)


def why_not() -> str:
    """Why this machine cannot make two hosts; empty when it can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"needs {' and '.join(missing)} of iproute2"
    name = _new_name()
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"cannot make a network namespace: {made.stderr.strip()}"
    cable = ["ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1"]
    joined = subprocess.run(cable, capture_output=True, text=True, check=False)
    _run("ip", "netns", "del", name)
    return f"cannot make a cable: {joined.stderr.strip()}" if joined.returncode else ""


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Raises `CalledProcessError` where `why_not` has a reason."""
    hosts = TwoHosts(Host(_new_name(), 1), Host(_new_name(), 2))
    made: list[Host] = []
    try:
        for host in (hosts.left, hosts.right):
            _run("ip", "netns", "add", host.namespace)
            made.append(host)
            host.ip("link", "set", "lo", "up")
        for cable in (FAST, SLOW):
            hosts.left.ip("link", "add", cable, "type", "veth", "peer", "name", cable, "netns", hosts.right.namespace)
            for host in made:
                host.ip("addr", "add", f"{host.address(cable)}/24", "dev", cable)
                host.ip("link", "set", cable, "up")
        hosts.wait_for_carrier()
        yield hosts
    finally:
        for host in made:
            _run("ip", "netns", "del", host.namespace)


def move_in(namespace: str) -> None:
    """This thread and all that it will start go to live on that host; threads that run already stay where they are."""
    with Path("/run/netns", namespace).open() as door:
        _system_call("setns", door.fileno(), _CLONE_NEWNET)
    # The list of network interfaces under /sys is that of the host on which it was mounted.
    _system_call("unshare", _CLONE_NEWNS)
    _system_call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
    _system_call("umount2", b"/sys", _MNT_DETACH)
    _system_call("mount", namespace.encode(), b"/sys", b"sysfs", 0, None)


def _system_call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _new_name() -> str:
    return f"baton-{uuid.uuid4().hex[:12]}"


def _run(*command: str, may_fail: bool = False) -> str:
    return subprocess.run(command, check=not may_fail, capture_output=True, text=True, timeout=10).stdout
