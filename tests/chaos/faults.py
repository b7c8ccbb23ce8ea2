"""The faults, and the hand that deals them: which comes next follows from the seed and from who is well.

A pool is left at least one worker that is well: what is to be shown is that a fault is survived, not that nothing is
needed to serve. Faults of different places overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc

from cluster.engine import Role
from cluster.wire import role_from_wire
from protos.baton.v1 import admin_pb2, worker_pb2
from tests.chaos.scene import Scene

KINDS = ("kill", "stall", "restart", "drain", "cut", "silence", "redis-kill", "redis-freeze", "directory-kill")
BREAKS = frozenset({"kill", "restart", "cut"})
"""What both ends notice at once; the others are noticed by a silence."""
_DIRECTORY = "ray::DirectoryActor"
_STALL_S = (4.0, 6.0)
_CUT_S = 1.0
_REDIS_S = 2.0
_BACK_S = 60.0
_LOOK_S = 0.25
_CALL_S = 5.0


@dataclass(frozen=True)
class Dealt:
    """`at`: seconds of the monotonic clock. `worker_id` is empty for what is no worker."""

    kind: str
    at: float
    worker_id: str = ""


class Faults:
    def __init__(self, scene: Scene, seed: int, say: Callable[[str], None]) -> None:
        self._scene = scene
        self._draw = random.Random(seed)
        self._say = say
        self._hurt: set[str] = set()  # also the places that are no workers
        self._running: set[asyncio.Task[None]] = set()
        self.dealt: list[Dealt] = []
        self.failed: list[str] = []

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(each.kind for each in self.dealt))

    async def deal(self, every_s: float, enough: Callable[[], bool]) -> None:
        """Until there is enough; then waits for all to be well again."""
        kinds: list[str] = []
        while not enough():
            if not kinds:  # every kind comes, in ever another order
                kinds = list(KINDS)
                self._draw.shuffle(kinds)
            await self._begin(kinds.pop())
            await asyncio.sleep(every_s * self._draw.uniform(0.5, 1.5))
        await asyncio.gather(*self._running)

    async def _begin(self, kind: str) -> None:
        if kind in ("redis-kill", "redis-freeze", "directory-kill"):
            place = kind.partition("-")[0]
            if place not in self._hurt:
                self._start(kind, place, _ELSEWHERE[kind](self))
            return
        worker_id = await self._victim(kind)
        if worker_id:
            self._start(kind, worker_id, _ON_WORKERS[kind](self, worker_id))

    async def _victim(self, kind: str) -> str:
        """Empty: nobody can be spared for it now."""
        ready = await self._ready()
        pools: dict[Role, list[str]] = {role: [] for role in Role}
        for worker_id, worker in ready.items():
            if worker_id not in self._hurt:
                pools[role_from_wire(worker.role)].append(worker_id)
        able = [
            worker_id
            for pool in pools.values()
            if len(pool) > 1
            for worker_id in sorted(pool)
            if (worker_id in self._scene.fixed) == (kind in ("restart", "cut", "silence")) or kind == "stall"
        ]
        return self._draw.choice(able) if able else ""

    def _start(self, kind: str, place: str, fault: Awaitable[None]) -> None:
        self._hurt.add(place)
        task = asyncio.create_task(self._run(kind, place, fault), name=f"{kind} of {place}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, kind: str, place: str, fault: Awaitable[None]) -> None:
        self._say(f"{kind} of {place}")
        try:
            await fault
        except (LookupError, OSError, grpc.RpcError) as error:
            self.failed.append(f"{kind} of {place}: {error!r}")
        finally:
            self._hurt.discard(place)

    def _note(self, kind: str, worker_id: str = "") -> None:
        self.dealt.append(Dealt(kind, time.monotonic(), worker_id))

    # On workers

    async def _kill(self, worker_id: str) -> None:
        pid = await asyncio.to_thread(self._scene.process_of, worker_id)
        before = set(await self._ready())
        os.kill(pid, signal.SIGKILL)
        self._note("kill", worker_id)
        await self._replaced(worker_id, before)

    async def _stall(self, worker_id: str) -> None:
        pid = await asyncio.to_thread(self._scene.process_of, worker_id)
        os.kill(pid, signal.SIGSTOP)
        self._note("stall", worker_id)
        await asyncio.sleep(self._draw.uniform(*_STALL_S))
        with contextlib.suppress(ProcessLookupError):  # its supervisor may have had enough of it
            os.kill(pid, signal.SIGCONT)
        await self._well_again(worker_id)

    async def _restart(self, worker_id: str) -> None:
        self._note("restart", worker_id)
        await self._scene.fixed[worker_id].replace()
        await self._well_again(worker_id)

    async def _drain(self, worker_id: str) -> None:
        before = set(await self._ready())
        request = admin_pb2.DrainRequest(worker_id=worker_id, reason="chaos", deadline_s=1.0)
        await asyncio.to_thread(self._scene.admin.Drain, request, timeout=_CALL_S)
        self._note("drain", worker_id)
        await self._replaced(worker_id, before)

    async def _cut(self, worker_id: str) -> None:
        self._note("cut", worker_id)
        await self._scene.fixed[worker_id].line.cut(_CUT_S)
        await self._well_again(worker_id)

    async def _silence(self, worker_id: str) -> None:
        self._note("silence", worker_id)
        await self._scene.fixed[worker_id].line.silence(self._draw.uniform(*_STALL_S))
        await self._well_again(worker_id)

    # Elsewhere

    async def _redis_kill(self) -> None:
        self._scene.redis.kill()
        self._note("redis-kill")
        await asyncio.sleep(_REDIS_S)
        await asyncio.to_thread(self._scene.redis.restart)

    async def _redis_freeze(self) -> None:
        with self._scene.redis.frozen():
            self._note("redis-freeze")
            await asyncio.sleep(_REDIS_S)

    async def _directory_kill(self) -> None:
        os.kill(self._scene.process_named(_DIRECTORY), signal.SIGKILL)
        self._note("directory-kill")

    # Being well again

    async def _well_again(self, worker_id: str) -> None:
        await self._until(lambda ready: worker_id in ready, f"{worker_id} does not come back")

    async def _replaced(self, worker_id: str, before: set[str]) -> None:
        """Serve starts another one in its place, under another name."""
        await self._until(
            lambda ready: worker_id not in ready and bool(ready.keys() - before), f"nobody came for {worker_id}"
        )

    async def _ready(self) -> Mapping[str, worker_pb2.WorkerDescription]:
        """Nobody, while a router does not answer."""
        try:
            return await self._scene.ready()
        except grpc.RpcError:
            return {}

    async def _until(self, true: Callable[[Mapping[str, object]], bool], otherwise: str) -> None:
        give_up = time.monotonic() + _BACK_S
        while time.monotonic() < give_up:
            await asyncio.sleep(_LOOK_S)
            if true(await self._ready()):
                return
        raise LookupError(otherwise)


_ON_WORKERS: dict[str, Callable[[Faults, str], Awaitable[None]]] = {
    "kill": Faults._kill,
    "stall": Faults._stall,
    "restart": Faults._restart,
    "drain": Faults._drain,
    "cut": Faults._cut,
    "silence": Faults._silence,
}
_ELSEWHERE: dict[str, Callable[[Faults], Awaitable[None]]] = {
    "redis-kill": Faults._redis_kill,
    "redis-freeze": Faults._redis_freeze,
    "directory-kill": Faults._directory_kill,
}
