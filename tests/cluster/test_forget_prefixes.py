"""A worker's cache emptied over the wire: not while it has work, and watchers hear of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from protos.baton.v1 import worker_pb2 as pb
from tests.cluster.worker_bench import EPOCH, Bench
from tests.waiting import eventually


async def test_a_worker_with_work_keeps_its_cache_and_an_idle_one_forgets_it() -> None:
    async with Bench(step_s=0.02).running() as bench:
        router = await bench.session()
        await router.submit("a", max_tokens=50)
        await eventually(lambda: bool(bench.worker.feed.held))
        answer = await bench.stub.ForgetPrefixes(pb.ForgetPrefixesRequest(), timeout=5)
        assert not answer.forgotten
        await router.outputs_of("a")
        await eventually(lambda: not bench.engine.batch.pool.used)
        watch = bench.stub.Watch(pb.WatchRequest(router_id="r", epoch=EPOCH))
        messages: AsyncIterator[pb.WatchReply] = aiter(watch)
        assert (await anext(messages)).stored
        answer = await bench.stub.ForgetPrefixes(pb.ForgetPrefixesRequest(), timeout=5)
        assert answer.forgotten
        while not (message := await anext(messages)).cleared:
            pass
        assert not message.stored
        assert not bench.worker.feed.held
        watch.cancel()


async def test_a_dead_engine_cannot_forget() -> None:
    async with Bench().running() as bench:
        bench.engine.fail("out of order")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await bench.stub.ForgetPrefixes(pb.ForgetPrefixesRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "out of order" in (refused.value.details() or "")
