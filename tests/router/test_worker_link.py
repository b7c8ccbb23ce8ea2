"""One link to one worker: what ends it, and what whoever waits on it hears then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace

import pytest

from cluster.engine import Role
from cluster.errors import WorkerLost
from cluster.membership import WorkerRecord
from protos.baton.v1 import worker_pb2
from router.worker_link import OUTGOING_LIMIT, WorkerLink
from tests.router.scripted_worker import LeaseBook, ScriptedWorker
from tests.router.test_fleet import TTL_S, on_stage


async def link_to(worker: ScriptedWorker, record: WorkerRecord | None = None) -> WorkerLink:
    started = await worker.start()
    return WorkerLink(record or started, "router-1", deadline_s=0.5)


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker("w", Role.DECODE, LeaseBook())
    yield worker
    await worker.stop()


async def test_a_worker_that_says_nothing_is_lost_at_the_deadline(worker: ScriptedWorker) -> None:
    worker.silent = True
    link = await link_to(worker)
    with pytest.raises(WorkerLost, match="no answer within"):
        await link.open()
    await link.close()


async def test_an_address_without_a_worker_is_lost_and_says_which() -> None:
    link = WorkerLink(WorkerRecord("w", Role.DECODE, 1, "127.0.0.1:1"), "router-1", deadline_s=5.0)
    with pytest.raises(WorkerLost, match=r"worker w at 127\.0\.0\.1:1"):
        await link.open()
    await link.close()


async def test_a_worker_of_another_epoch_is_refused(worker: ScriptedWorker) -> None:
    link = await link_to(worker)
    link.record = replace(link.record, epoch=9)
    with pytest.raises(WorkerLost, match="epoch 1"):
        await link.open()
    await link.close()


async def test_a_worker_that_has_failed_takes_no_session(worker: ScriptedWorker) -> None:
    worker.state = worker_pb2.WORKER_STATE_FAILED
    link = await link_to(worker)
    with pytest.raises(WorkerLost, match="FAILED"):
        await link.open()
    await link.close()


async def test_a_worker_that_does_not_read_counts_as_lost(worker: ScriptedWorker) -> None:
    link = await link_to(worker)
    await link.open()
    serving = asyncio.create_task(link.serve(lambda step: None))
    message = worker_pb2.SessionRequest(abort=worker_pb2.Abort(attempt_ids=["x"]))
    sent = [link.send(message) for _ in range(OUTGOING_LIMIT + 1)]  # the loop has no turn to write them
    assert sent == [True] * OUTGOING_LIMIT + [False]
    with pytest.raises(WorkerLost, match="does not read"):
        await serving
    await link.close()


async def test_cancelling_the_owner_of_a_link_is_no_loss(worker: ScriptedWorker) -> None:
    link = await link_to(worker)
    await link.open()
    serving = asyncio.create_task(link.serve(lambda step: None))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await link.close()
    assert not link.send(worker_pb2.SessionRequest())


async def test_cancelling_the_owner_of_a_link_that_was_just_given_up_is_no_loss_either(worker: ScriptedWorker) -> None:
    link = await link_to(worker)
    await link.open()
    serving = asyncio.create_task(link.serve(lambda step: None))
    await asyncio.sleep(0)
    link.give_up(WorkerLost("it says nothing"))
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await link.close()


class Wordless(ScriptedWorker):
    """Takes questions and does not answer."""

    def __init__(self, worker_id: str, role: Role, leases: LeaseBook) -> None:
        super().__init__(worker_id, role, leases)
        self.asked = asyncio.Event()

    async def Describe(self, request: worker_pb2.DescribeRequest, context: object) -> worker_pb2.WorkerDescription:
        self.asked.set()
        return await asyncio.get_running_loop().create_future()

    async def ForgetPrefixes(
        self, request: worker_pb2.ForgetPrefixesRequest, context: object
    ) -> worker_pb2.ForgetPrefixesResponse:
        self.asked.set()
        return await asyncio.get_running_loop().create_future()


Question = Callable[[WorkerLink], Coroutine[None, None, object]]
QUESTIONS: list[Question] = [WorkerLink.describe, WorkerLink.forget_prefixes]


@pytest.mark.parametrize("question", QUESTIONS)
async def test_whoever_waits_for_an_answer_hears_that_the_link_has_ended(question: Question) -> None:
    worker = Wordless("w", Role.DECODE, LeaseBook())
    link = WorkerLink(await worker.start(), "router-1", deadline_s=30.0)
    waiting = asyncio.create_task(question(link))
    await asyncio.wait_for(worker.asked.wait(), 10)
    await link.close()
    with pytest.raises(WorkerLost, match="has ended"):
        await waiting
    with pytest.raises(WorkerLost, match="has ended"):
        await question(link)
    await worker.stop()


async def test_whoever_waits_for_an_answer_can_be_cancelled() -> None:
    worker = Wordless("w", Role.DECODE, LeaseBook())
    link = WorkerLink(await worker.start(), "router-1", deadline_s=30.0)
    waiting = asyncio.create_task(link.describe())
    await asyncio.wait_for(worker.asked.wait(), 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await link.close()
    await worker.stop()


async def test_a_worker_whose_link_is_given_up_while_it_is_asked_does_not_spoil_the_answers_of_others() -> None:
    async with on_stage(worker_deadline_s=30.0) as stage:
        await stage.add("p", Role.PREFILL)
        worker = Wordless("d", Role.DECODE, stage.leases)
        stage.workers["d"] = worker
        await stage.directory.announce(await worker.start(), TTL_S)
        await stage.linked("d")
        describing = asyncio.create_task(stage.fleet.describe())
        await asyncio.wait_for(worker.asked.wait(), 10)
        link = stage.fleet._members["d"].link
        assert link is not None
        link.give_up(WorkerLost("it says nothing"))
        unreachable = {report.record.worker_id: report.unreachable for report in await describing}
        assert unreachable["p"] == ""
        assert "has ended" in unreachable["d"]


async def test_a_worker_that_is_dismissed_in_the_moment_of_its_loss_is_gone() -> None:
    async with on_stage() as stage:
        await stage.add("d", Role.DECODE)
        member = stage.fleet._members["d"]
        assert member.link is not None
        member.link.give_up(WorkerLost("it says nothing"))
        await stage.fleet._dismiss([member])
        assert stage.fleet.dispatch.view.get("d") is None
