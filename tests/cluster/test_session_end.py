"""The end of a session whose call gRPC cancels, once or more, wherever it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from cluster.worker_session import Session
from protos.baton.v1 import worker_pb2 as pb
from tests.waiting import eventually


class Host:
    """`closed` waits for the gate, as for an engine that is slow to abort."""

    epoch = 1

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.sessions: list[Session] = []
        self.reached = asyncio.Event()
        self.ended: list[Session] = []

    async def describe(self) -> pb.WorkerDescription:
        return pb.WorkerDescription()

    async def submit(self, session: Session, submit: pb.Submit) -> None: ...

    async def abort(self, session: Session, attempt_ids: Sequence[str]) -> None: ...

    async def release(self, lease_id: str) -> None: ...

    def order_drain(self, drain: pb.Drain) -> None: ...

    def opened(self, session: Session) -> None:
        self.sessions.append(session)

    async def closed(self, session: Session) -> None:
        self.reached.set()
        await self.gate.wait()
        self.ended.append(session)


class Context:
    async def write(self, message: pb.SessionReply) -> None: ...


async def requests() -> AsyncIterator[pb.SessionRequest]:
    yield pb.SessionRequest(hello=pb.Hello(router_id="r", epoch=1))
    await asyncio.Event().wait()


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_that_is_cancelled_again_while_it_ends_still_tells_its_host(turns: int) -> None:
    host, context = Host(), Context()
    call: Any = asyncio.create_task(Session(host).run(requests(), context))  # type: ignore[arg-type]
    await eventually(lambda: bool(host.sessions))
    call.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait_for(host.reached.wait(), 5)
    host.gate.set()
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: bool(host.ended))
    assert host.ended == host.sessions
