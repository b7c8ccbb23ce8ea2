"""The public gRPC API against a scripted generator: translation, errors, cancellation, health and reflection."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.config import RouterConfig
from cluster.config_security import NO_TENANT
from cluster.engine import TokenLogprobs
from cluster.errors import DeadlineExceeded, InvalidRequest, NoWorker, Overloaded, TenantLimited, UnknownModel
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from router.caller import Caller, current_caller
from router.grpc_edge import GrpcEdge
from router.text_generation import (
    ChatMessage,
    ChatPrompt,
    Prompt,
    Rendered,
    TextChunk,
    TextDelta,
    TextPrompt,
    TextSampling,
    TokenPrompt,
    Usage,
)
from tests.ipv6 import NEEDS_IPV6

SERVICE = "baton.v1.Inference"


class Script:
    """Implements `TextGeneration`: yields what it was given, fails where it was told, notices being left."""

    model = "demo"
    max_model_len = 4096

    def __init__(self) -> None:
        self.asked: list[tuple[str, Prompt, TextSampling, str]] = []
        self.chunks: list[TextChunk] = []
        self.error: Exception | None = None
        self.waits = False
        self.left = asyncio.Event()
        self.callers: list[Caller] = []

    async def generate(
        self, model: str, prompt: Prompt, sampling: TextSampling, request_id: str
    ) -> AsyncGenerator[TextChunk, None]:
        self.asked.append((model, prompt, sampling, request_id))
        self.callers.append(current_caller())
        try:
            for chunk in self.chunks:
                yield chunk
            if self.error is not None:
                raise self.error
            if self.waits:
                await asyncio.Event().wait()
        finally:
            self.left.set()

    async def render(self, model: str, prompt: Prompt, sampling: TextSampling) -> Rendered:
        raise NotImplementedError


class NoAdmin(admin_pb2_grpc.AdminServicer):
    async def Status(self, request: admin_pb2.StatusRequest, context: object) -> admin_pb2.StatusResponse:
        raise NotImplementedError

    async def Explain(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Drain(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    Scale = Autoscale = PauseAutoscale = Trace = FlushCache = Drain
    ListRequests = ListLeases = ListEvents = Cache = ShowConfig = Drain


class Bench:
    def __init__(self, script: Script, edge: GrpcEdge, channel: grpc.aio.Channel) -> None:
        self.script = script
        self.edge = edge
        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceStub(channel)

    async def generate(self, **fields: Any) -> list[inference_pb2.GenerateResponse]:
        fields.setdefault("text", "hello")
        return [response async for response in self.inference.Generate(inference_pb2.GenerateRequest(**fields))]

    async def failure(self, **fields: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.generate(**fields)
        return caught.value.code(), caught.value.details() or ""


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    script = Script()
    config = RouterConfig(grpc_port=0, max_choices=4, max_body_bytes=10_000)
    edge = GrpcEdge(config, script, NoAdmin())
    port = await edge.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Bench(script, edge, channel)
    await edge.close(0)


@NEEDS_IPV6
async def test_it_listens_on_ipv6() -> None:
    edge = GrpcEdge(RouterConfig(grpc_host="::1", grpc_port=0), Script(), NoAdmin())
    port = await edge.start()
    with socket.socket(socket.AF_INET6) as client:
        client.connect(("::1", port))
    await edge.close(0)


async def test_deltas_and_usage_arrive_as_they_were_made(bench: Bench) -> None:
    at = TokenLogprobs((7, 8, 9), (-0.5, -1.5, -2.5), 1)
    bench.script.chunks = [
        TextChunk((TextDelta(0, "he", (7,), (at,)),)),
        TextChunk((TextDelta(0, "llo", (8, 9), finish_reason="stop", stop_reason="9"),), Usage(3, 3, 2)),
    ]
    two_likely = inference_pb2.SamplingParameters(logprobs=2)
    first, last = await bench.generate(request_id="mine", sampling=two_likely)
    assert (first.request_id, first.model, first.HasField("usage")) == ("mine", "demo", False)
    (delta,) = first.deltas
    assert (delta.text, list(delta.token_ids)) == ("he", [7])
    assert [(top.token_id, top.logprob) for top in delta.logprobs[0].top] == [(7, -0.5), (8, -1.5)]
    assert (last.deltas[0].finish_reason, last.deltas[0].stop_reason) == ("stop", "9")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (3, 3, 2)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"text": "hi"}, TextPrompt("hi")),
        ({"tokens": {"ids": [1, 2]}}, TokenPrompt([1, 2])),
        ({"chat": {"messages": [{"role": "user", "content": "hi"}]}}, ChatPrompt((ChatMessage("user", "hi"),))),
    ],
)
async def test_every_form_of_prompt_reaches_the_generator(bench: Bench, fields: dict[str, Any], prompt: Prompt) -> None:
    if "text" not in fields:
        fields = {**fields, "text": None}
    await bench.generate(model="demo", **fields)
    assert bench.script.asked[0][:2] == ("demo", prompt)
    assert bench.script.asked[0][3].startswith("grpc-")


async def test_absent_sampling_fields_stay_absent_and_zero_is_a_value(bench: Bench) -> None:
    await bench.generate(sampling={"temperature": 0.0, "stop": ["x"], "seed": -3, "n": 2})
    assert bench.script.asked[0][2] == TextSampling(temperature=0.0, stop=("x",), seed=-3, n=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": None},
        {"text": None, "tokens": {"ids": []}},
        {"text": None, "chat": {"messages": []}},
        {"sampling": {"max_tokens": 0}},
        {"sampling": {"n": 0}},
        {"sampling": {"n": 5}},
        {"request_id": "x" * 257},
        {"request_id": "a\nb"},
    ],
)
async def test_bad_input_is_refused_before_anything_is_asked(bench: Bench, fields: dict[str, Any]) -> None:
    code, _ = await bench.failure(**fields)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert bench.script.asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("bad"), grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownModel("who"), grpc.StatusCode.NOT_FOUND),
        (Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (NoWorker("nobody"), grpc.StatusCode.UNAVAILABLE),
        (DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
async def test_errors_keep_their_code_and_their_words(bench: Bench, error: Exception, code: grpc.StatusCode) -> None:
    bench.script.error = error
    assert await bench.failure() == (code, str(error))


async def test_what_is_not_ours_to_explain_stays_in_the_log(bench: Bench) -> None:
    bench.script.error = RuntimeError("secret")
    code, details = await bench.failure()
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


async def test_a_message_over_the_limit_is_refused(bench: Bench) -> None:
    code, _ = await bench.failure(text="x" * 20_000)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bench.script.asked == []


async def test_a_client_that_cancels_ends_the_generation(bench: Bench) -> None:
    bench.script.chunks, bench.script.waits = [TextChunk((TextDelta(0, "a", (1,)),))], True
    call = bench.inference.Generate(inference_pb2.GenerateRequest(text="hi"))
    assert (await anext(aiter(call))).deltas[0].text == "a"
    call.cancel()
    await asyncio.wait_for(bench.script.left.wait(), 5)


async def test_a_client_deadline_ends_the_generation(bench: Bench) -> None:
    bench.script.waits = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in bench.inference.Generate(inference_pb2.GenerateRequest(text="hi"), timeout=1.0):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(bench.script.left.wait(), 5)


async def test_admission_learns_of_a_clients_deadline(bench: Bench) -> None:
    before = time.monotonic()
    async for _ in bench.inference.Generate(inference_pb2.GenerateRequest(text="hi"), timeout=20.0):
        pass
    await bench.generate()
    hurried, patient = bench.script.callers
    assert hurried.deadline is not None
    assert before + 10.0 < hurried.deadline < time.monotonic() + 21.0  # what goes over the wire is rounded
    assert hurried.until(before, 600.0) == hurried.deadline
    assert patient.deadline is None


async def test_the_model_is_listed(bench: Bench) -> None:
    (model,) = (await bench.inference.ListModels(inference_pb2.ListModelsRequest())).models
    assert (model.id, model.max_model_len) == ("demo", 4096)


async def test_health_says_what_it_was_told(bench: Bench) -> None:
    stub = health_pb2_grpc.HealthStub(bench.channel)
    for ready, status in ((True, "SERVING"), (False, "NOT_SERVING")):
        await bench.edge.set_ready(ready)
        for service in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status


async def test_health_follows_what_changes_without_a_word(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.grpc_edge.HEALTH_S", 0.01)
    stub, ready = health_pb2_grpc.HealthStub(bench.channel), True
    silent = asyncio.Event()
    following = asyncio.create_task(bench.edge.follow(lambda: ready, lambda: silent))
    seen = []
    async with asyncio.timeout(10):
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
            seen.append(answer.status)
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING and not ready:
                break
            ready = answer.status != health_pb2.HealthCheckResponse.SERVING
    following.cancel()
    await asyncio.wait({following})
    assert seen[-2:] == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_a_client_can_be_made_from_reflection_alone(bench: Bench) -> None:
    files = await reflected_files(bench.channel)
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    bench.script.chunks = [TextChunk((TextDelta(0, "a", (1,), finish_reason="stop"),), Usage(1, 1, 0))]
    method = pool.FindServiceByName(SERVICE).FindMethodByName("Generate")
    request = message_factory.GetMessageClass(method.input_type)(text="hi")
    reply: Any = message_factory.GetMessageClass(method.output_type)
    call: Any = bench.channel.unary_stream(
        f"/{SERVICE}/Generate",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=reply.FromString,
    )
    assert [response.deltas[0].text async for response in call(request)] == ["a"]


async def reflected_files(channel: grpc.aio.Channel) -> list[FileDescriptorProto]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    async for answer in stub.ServerReflectionInfo(iter([asked])):
        raw = answer.file_descriptor_response.file_descriptor_proto
        return [FileDescriptorProto.FromString(file) for file in raw]
    raise AssertionError("no answer")


async def test_tenant_and_class_come_with_the_call(bench: Bench) -> None:
    request = inference_pb2.GenerateRequest(text="hello")
    named = (("x-tenant-id", "acme"), ("x-priority-class", "batch"))
    _ = [response async for response in bench.inference.Generate(request, metadata=named)]
    await bench.generate()
    callers = [(caller.tenant, caller.priority) for caller in bench.script.callers]
    assert callers == [("acme", "batch"), (NO_TENANT, "")]


async def test_a_malformed_tenant_is_an_invalid_argument(bench: Bench) -> None:
    call = bench.inference.Generate(inference_pb2.GenerateRequest(text="hello"), metadata=(("x-tenant-id", "a/b"),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in call]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert bench.script.asked == []


@pytest.mark.parametrize("refusal", [Overloaded("full", 4.1), TenantLimited("yours", 4.1)])
async def test_a_refusal_says_when_to_come_back_in_its_trailing_metadata(bench: Bench, refusal: Exception) -> None:
    bench.script.error = refusal
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.generate()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())["retry-after"] == "5"
