"""What a machine must have to run a part of a cluster: Python, limits, shared memory, a GPU where one is asked for.

Looks and changes nothing. Each function judges figures that it is given or reads them itself; none raises.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.errors import BatonError
from cluster.host_port import host_port
from deploy import cluster_record
from deploy.doctor.check import Check, fail, ok, warn
from deploy.free_port import why_taken

_OLDEST, _FIRST_TOO_NEW = (3, 11), (3, 14)
_SHM_NEEDED, _SHM_WANTED = 64 << 20, 2 << 30
_FILES_NEEDED, _FILES_WANTED = 4_096, 65_536
_GIB = 1 << 30
_RDMA_DEVICES = Path("/sys/class/infiniband")
_GPU_DEVICES = "nvidia[0-9]*"


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    name = ".".join(map(str, version))
    if _OLDEST <= version[:2] < _FIRST_TOO_NEW:
        return ok("python", name)
    return fail("python", name, "use Python 3.11, 3.12 or 3.13")


def shared_memory(free_bytes: int | None = None) -> Check:
    """Ray's objects, and NIXL within one machine, lie in it."""
    free = _free("/dev/shm") if free_bytes is None else free_bytes
    found = f"{free / _GIB:.2f} GiB free in /dev/shm"
    if free < _SHM_NEEDED:
        return fail(
            "shared memory", found, "in a container: --shm-size=2g; in a pod: mount an emptyDir of medium Memory"
        )
    if free < _SHM_WANTED:
        return warn("shared memory", found, "give it 2 GiB or more: Ray falls back to disk, which is slow")
    return ok("shared memory", found)


def open_files(limit: int | None = None) -> Check:
    """Each worker and each client is a connection."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if soft == resource.RLIM_INFINITY or soft >= _FILES_WANTED:
        return ok("open files", _limit(soft))
    advice = f"ulimit -n {_FILES_WANTED} before Ray starts"
    if soft < _FILES_NEEDED:
        return fail("open files", _limit(soft), advice)
    return warn("open files", _limit(soft), f"{advice}, for many clients and workers")


def locked_memory(limit: int | None = None, rdma: bool | None = None) -> Check:
    """Only RDMA pins the memory that it moves."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit is None else limit
    found = f"{_limit(soft)} bytes"
    if soft == resource.RLIM_INFINITY or not (bool(rdma_devices()) if rdma is None else rdma):
        return ok("locked memory", found)
    return warn(
        "locked memory", found, "ulimit -l unlimited, or IPC_LOCK for the pod: RDMA cannot register the KV cache"
    )


def rdma_devices() -> list[str]:
    return sorted(each.name for each in _RDMA_DEVICES.iterdir()) if _RDMA_DEVICES.is_dir() else []


def network(devices: list[str] | None = None) -> Check:
    """What UCX can go over between machines."""
    found = rdma_devices() if devices is None else devices
    if found:
        return ok("network", f"RDMA: {', '.join(found)}")
    return warn("network", "no RDMA device", "between machines KV blocks go over gRPC: fine for trying it out")


def gpu(wanted: bool, found: int | None = None) -> Check:
    """`wanted`: the configuration has engines on GPUs."""
    count = len(list(Path("/dev").glob(_GPU_DEVICES))) if found is None else found
    if count:
        return ok("gpu", f"{count} of NVIDIA")
    if wanted:
        return fail("gpu", "none, and engine.device is gpu", "install the driver, or pass the GPUs into the container")
    return ok("gpu", "none; engines run on the CPU")


def ports(wanted: list[tuple[str, str, int]], serves: Callable[[str, int], bool]) -> Iterator[Check]:
    """`wanted`: key, host and port of each that a cluster would listen on; `serves`: whether a router answers there."""
    for key, host, port in wanted:
        name, place = f"port {key}", host_port(host, port)
        if (why := why_taken(host, port)) is None:
            yield ok(name, f"{place} is free")
        elif serves(host, port):
            yield ok(name, f"{place} is the running cluster's")
        else:
            yield fail(name, f"{place}: {why}", "stop what uses it, or choose another port")


def state_folder() -> Check:
    """`baton up` keeps there who owns which cluster."""
    try:
        folder = cluster_record.state_folder()
    except BatonError as error:
        return fail("state folder", str(error), "set XDG_STATE_HOME to a folder that this user may write")
    if not os.access(folder, os.W_OK | os.X_OK):
        return fail("state folder", f"{folder} cannot be written", "make it writable, or set XDG_STATE_HOME")
    return ok("state folder", str(folder))


def model_directory(path: str) -> Check:
    """A path, or the name of a model on a hub."""
    try:
        return _model_directory(path)
    except (OSError, RuntimeError) as error:  # the latter where a user's home is not known
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return fail("model", f"{path}: {why}", "name a directory that this user may enter")


def _model_directory(path: str) -> Check:
    folder = Path(path).expanduser()
    if not folder.exists():
        if path.startswith((".", "/", "~")):
            return fail(
                "model", f"{path} does not exist", "put the model there; `baton model demo DIR` writes a small one"
            )
        return warn(
            "model", f"{path} is no directory here", "it is taken as a hub's name: its download needs the network"
        )
    config = folder / "config.json"
    if not os.access(config, os.R_OK):
        return fail("model", f"{config} cannot be read", "name a directory with config.json, readable to this user")
    unreadable = [each.name for each in folder.iterdir() if each.is_file() and not os.access(each, os.R_OK)]
    if unreadable:
        return fail("model", f"{folder}: {', '.join(unreadable)} cannot be read", "make them readable to this user")
    return ok("model", str(folder))


def _free(folder: str) -> int:
    try:
        told = os.statvfs(folder)
    except OSError:
        return 0
    return told.f_bavail * told.f_frsize


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
