"""What is broken: two routers, three prefill and three decode workers with simulated engines, a Redis server.

Serve runs the routers and two workers of each pool; the third of each pool has a fixed address with a line in front of
it. Says which process serves at which address, and what the routers say of themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml

from cluster.engine import Role
from deploy.demo_model import write_demo_model
from deploy.free_port import free_port
from deploy.processes import descendants
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, worker_pb2
from tests.chaos.cut_line import CutLine
from tests.chaos.fixed_worker import FixedSpec
from tests.cluster.redis_server import RedisServer
from tests.listening import listener
from tests.live_cluster import ROOT, LiveCluster, live_cluster, local_config

NAME = "chaos"
MODEL = ROOT / ".baton/demo-model"
SERVED = 2  # workers of each pool that Serve runs
_BEHIND, _FRONT = "127.0.0.2", "127.0.0.3"
_CALL_S = 5.0
_START_S = 90.0
_SECRET = "only for as long as the chaos lasts"
LOCAL = (("grpc.use_local_subchannel_pool", 1),)
"""Channel options: a connection of its own, which may lead to another router of the same port."""


def chaos_config(model: Path, redis_url: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A stream of 30 tokens takes about a second."""
    pool = {"replicas": SERVED, "cpus_per_replica": 0.25, "drain_s": 5.0}
    config = local_config(
        model,
        NAME,
        engine={"kind": "simulated", "stall_after_s": 3.0, "simulated": {"step_s": 0.03, "num_blocks": 4096}},
        prefill=pool,
        decode=pool,
        store={"url": redis_url},
        kv_transfer={"lease_s": 5.0},
    )
    config["engine"].pop("options", None)
    config["router"] |= {"replicas": 2, "cpus_per_replica": 0.25, "request_deadline_s": 60.0, "silent_after_s": 3.0}
    for section, values in sections.items():
        config.setdefault(section, {}).update(values)
    return config


class FixedWorker:
    """The worker at the fixed address, and the next one, which waits to take its place."""

    def __init__(self, spec: FixedSpec) -> None:
        self.spec = spec
        self.line = CutLine((_FRONT, spec.port), (_BEHIND, spec.port))
        self._serving = self._begin()
        self._next = self._begin()

    @property
    def pid(self) -> int:
        return self._serving.pid

    @property
    def address(self) -> str:
        return f"{_FRONT}:{self.spec.port}"

    async def start(self) -> None:
        await self.line.start()
        await to_thread(_let_serve, self._serving)

    async def replace(self) -> None:
        """Killed; another process takes its name and its address at once."""
        _end(self._serving)
        self._serving, self._next = self._next, self._begin()
        await to_thread(_let_serve, self._serving)

    async def close(self) -> None:
        for process in (self._next, self._serving):
            _end(process)
        await self.line.close()

    def _begin(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.chaos.fixed_worker", json.dumps(dataclasses.asdict(self.spec))]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _let_serve(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    _expect(process, "joined")
    process.stdin.write("serve\n")
    process.stdin.flush()
    _expect(process, "serving")


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise RuntimeError(f"a fixed worker ended before it was {word}: {process.wait()}")


@dataclass
class Scene:
    cluster: LiveCluster
    redis: RedisServer
    fixed: dict[str, FixedWorker]
    """By worker id."""
    admins: dict[str, admin_pb2_grpc.AdminStub]
    """By router id."""

    @property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        return next(iter(self.admins.values()))

    def status(self, router_id: str = "") -> admin_pb2.StatusResponse:
        admin = self.admins[router_id] if router_id else self.admin
        return admin.Status(admin_pb2.StatusRequest(), timeout=2 * _CALL_S)

    def forget_dead_routers(self) -> None:
        """All share one port: where one has died, another answers a call that dials anew."""
        for router_id in list(self.admins):
            try:
                answers = self.status(router_id).router_id
            except grpc.RpcError:
                answers = ""
            if answers != router_id:
                del self.admins[router_id]

    async def ready(self) -> dict[str, worker_pb2.WorkerDescription]:
        """Workers that take requests, by id, as every router sees them."""
        told = [
            _ready(status) for status in await asyncio.gather(*(to_thread(self.status, id_) for id_ in self.admins))
        ]
        return {id_: worker for id_, worker in told[0].items() if all(id_ in each for each in told)}

    def process_of(self, worker_id: str) -> int:
        """Raises `LookupError` where it has gone."""
        if worker_id in self.fixed:
            return self.fixed[worker_id].pid
        for worker in self.status().workers:
            if worker.description.worker_id == worker_id:
                return listener(int(worker.address.rpartition(":")[2]), self.cluster.pid)
        raise LookupError(worker_id)

    def process_named(self, name: str) -> int:
        """Raises `LookupError`."""
        for pid in descendants(self.cluster.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0].rpartition("/")[2].startswith(name):
                    return pid
        raise LookupError(name)


def _ready(status: admin_pb2.StatusResponse) -> dict[str, worker_pb2.WorkerDescription]:
    return {
        worker.description.worker_id: worker.description
        for worker in status.workers
        if not worker.unreachable and not worker.drained and worker.description.state == worker_pb2.WORKER_STATE_READY
    }


@contextmanager
def running(folder: Path, **sections: dict[str, Any]) -> Iterator[tuple[LiveCluster, RedisServer, Path]]:
    """The cluster without its fixed workers, and its configuration's path. `sections` are merged over it."""
    if not MODEL.is_dir():
        write_demo_model(MODEL)
    redis = RedisServer(folder / "redis", durable=True)
    try:
        with _environment(BATON_TICKET_SECRET=_SECRET, RAY_AUTH_MODE="token"):
            config = chaos_config(MODEL, redis.url, **sections)
            path = folder / "chaos.yaml"
            path.write_text(yaml.safe_dump(config))
            with live_cluster(config) as cluster:
                yield cluster, redis, path
    finally:
        redis.close()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Of this process and of all that it starts: who is to join the cluster needs what its own processes have."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """All of it, every worker known to both routers."""
    with ExitStack() as stack:
        cluster, redis, path = stack.enter_context(running(folder))
        address = _control_store(cluster.pid)
        fixed: dict[str, FixedWorker] = {}
        try:
            for role in Role:
                worker_id = f"{role.value}-fixed"
                spec = FixedSpec(str(path), address, worker_id, role.value, _BEHIND, _FRONT, free_port())
                fixed[worker_id] = FixedWorker(spec)
            await asyncio.gather(*(worker.start() for worker in fixed.values()))
            admins = await to_thread(_every_router, cluster, stack)
            made = Scene(cluster, redis, fixed, admins)
            await _until_all_are_ready(made, len(Role) * (SERVED + 1))
            yield made
        finally:
            for worker in fixed.values():
                await worker.close()


def _control_store(owner: int) -> str:
    """Where the cluster's own Ray can be joined."""
    for pid in descendants(owner):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            for word in words:
                if word.startswith("--gcs-address="):
                    return word.partition("=")[2]
    raise LookupError("no process of the cluster names its control store")


def _every_router(cluster: LiveCluster, stack: ExitStack) -> dict[str, admin_pb2_grpc.AdminStub]:
    """The kernel leads each new connection to one of them."""
    found: dict[str, admin_pb2_grpc.AdminStub] = {}
    give_up = time.monotonic() + _START_S
    while len(found) < 2:
        assert time.monotonic() < give_up, f"only {sorted(found)} answer"
        channel = grpc.insecure_channel(cluster.grpc, options=LOCAL)
        admin = admin_pb2_grpc.AdminStub(channel)
        router_id = admin.Status(admin_pb2.StatusRequest(), timeout=_CALL_S).router_id
        if router_id in found:
            channel.close()
        else:
            found[router_id] = admin
            stack.enter_context(channel)
    return found


async def _until_all_are_ready(made: Scene, count: int) -> None:
    give_up = time.monotonic() + _START_S
    while len(ready := await made.ready()) < count:
        assert time.monotonic() < give_up, f"of {count} workers only {sorted(ready)} are ready"
        await asyncio.sleep(0.2)
