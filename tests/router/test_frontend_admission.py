"""Admission as clients meet it, through both edges and the real frontend: limits, classes, and the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import openai
import pytest
import pytest_asyncio

from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2
from tests.router.frontend_deployment import PLACES, QUEUED_TOKENS, STREAMS, Deployment, cleared, deployed, tenant_of
from tests.router.scripted_worker import expected_tokens
from tests.waiting import eventually

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),  # vLLM's imports warn
    pytest.mark.timeout(300),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(demo_model: Path) -> AsyncIterator[Deployment]:
    async with deployed(demo_model) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def service(running: Deployment) -> AsyncIterator[Deployment]:
    async with cleared(running) as service:
        yield service


async def test_a_tenant_over_its_limit_is_told_by_status_and_header(service: Deployment) -> None:
    tenant = {"X-Tenant-Id": "plain"}
    await service.complete(extra_headers=tenant)
    with pytest.raises(openai.RateLimitError, match="tenant plain is over its limit") as caught:
        await service.complete(extra_headers=tenant)
    assert 40 <= int(caught.value.response.headers["retry-after"]) <= 50
    await service.complete()  # nobody else is concerned


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_of_such_a_tenant_is_told_the_same_way(service: Deployment, path: str) -> None:
    tenant, body = {"X-Tenant-Id": tenant_of(path)}, {"model": "demo", "stream": True, **STREAMS[path]}
    first = await service.http.post(path, json=body, headers=tenant)
    assert (first.status_code, first.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    refused = await service.http.post(path, json=body, headers=tenant)
    assert refused.status_code == 429
    assert 40 <= int(refused.headers["retry-after"]) <= 50
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", 429)
    assert f"tenant {tenant_of(path)} is over its limit" in error["message"]


async def test_every_choice_counts_for_its_tenant(service: Deployment) -> None:
    with pytest.raises(openai.RateLimitError):
        await service.complete(prompt=[[5, 6, 7]] * 2, extra_headers={"X-Tenant-Id": "choosy"})


async def test_where_one_choice_is_refused_none_of_its_siblings_runs_on(service: Deployment) -> None:
    service.decode.gate.clear()
    running = asyncio.create_task(service.complete(prompt=[[5, 6, 7]] * (PLACES - 1)))
    await eventually(lambda: len(service.decode.running) == PLACES - 1)
    # The first choice gets the last place, the second may not even wait, and its end makes a place for the third.
    with pytest.raises(openai.InternalServerError, match="wait already"):
        await service.complete(n=3, max_tokens=QUEUED_TOKENS + 50, temperature=1.0)
    assert service.replica.fleet.dispatch.in_flight == PLACES - 1
    service.decode.gate.set()
    await running


async def test_such_a_tenants_call_ends_with_a_time_to_come_back(service: Deployment) -> None:
    request = inference_pb2.GenerateRequest(text="hello", sampling=inference_pb2.SamplingParameters(max_tokens=2))
    tenant = (("x-tenant-id", "calling"),)
    assert [response async for response in service.grpc.Generate(request, metadata=tenant, timeout=30)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in service.grpc.Generate(request, metadata=tenant, timeout=30)]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 40 <= int(dict(caught.value.trailing_metadata())["retry-after"]) <= 50


async def test_an_unknown_class_is_a_bad_request_over_both_edges(service: Deployment) -> None:
    with pytest.raises(openai.BadRequestError, match="interactive, standard, batch"):
        await service.complete(extra_headers={"X-Priority-Class": "vip"})
    request = inference_pb2.GenerateRequest(text="hello")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in service.grpc.Generate(request, metadata=(("x-priority-class", "vip"),))]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert service.prefill.submits == []


async def test_a_client_that_leaves_the_queue_leaves_nothing(service: Deployment) -> None:
    dispatch = service.replica.fleet.dispatch
    service.decode.gate.clear()
    running = [asyncio.create_task(service.complete(prompt=[[5, 6, 7]] * 16)) for _ in range(PLACES // 16)]
    await eventually(lambda: len(service.decode.running) == PLACES)
    waiting = asyncio.create_task(service.complete())
    await eventually(lambda: dispatch.counters().queued == 1)
    waiting.cancel()
    await eventually(lambda: dispatch.counters().queued == 0)
    dispatch.check_integrity()
    assert dispatch.in_flight == PLACES
    service.decode.gate.set()
    await asyncio.gather(*running)
    assert len(service.prefill.submits) == PLACES


async def test_status_tells_how_the_store_is(service: Deployment) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.replica.grpc_port}") as channel:
        answer = await admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=10)
    assert (answer.store.degraded, answer.store.reason, answer.store.routers) == (False, "", 1)
    assert (answer.router.queued, answer.router.queued_tokens) == (0, 0)


async def test_what_waited_in_the_queue_is_served_in_full(service: Deployment) -> None:
    answers = await asyncio.gather(*(service.complete(prompt=[[5, 6, 7]] * 16) for _ in range(2 * PLACES // 16)))
    text = await service.text_of(expected_tokens([5, 6, 7], 6))
    assert [choice.text for answer in answers for choice in answer.choices] == [text] * 2 * PLACES
