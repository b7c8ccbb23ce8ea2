"""A gRPC client that knows nothing but the address: it learns the API by reflection and uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.e2e.cluster_status import ClusterStatus

pytestmark = [pytest.mark.engine, pytest.mark.timeout(580)]

SERVICE = "baton.v1.Inference"
Generate = Callable[..., Any]


@pytest.fixture(scope="module")
def generate(channel: grpc.Channel) -> Generate:
    """Calls Generate with fields given as keywords; message classes come from the server's descriptors alone."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    method = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name["Generate"]
    request_class = message_factory.GetMessageClass(method.input_type)
    response_class = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_stream(
        f"/{SERVICE}/Generate",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    return lambda timeout=60, **fields: call(request_class(**fields), timeout=timeout)


def test_text_streams_token_by_token_and_ends_with_usage(generate: Generate) -> None:
    parts = list(generate(text="Pass it on", sampling={"max_tokens": 9, "temperature": 0, "ignore_eos": True}))
    tokens = [token for part in parts for delta in part.deltas for token in delta.token_ids]
    assert len(tokens) == 9
    assert len([part for part in parts if part.deltas]) > 1
    assert [delta.finish_reason for part in parts for delta in part.deltas if delta.finish_reason] == ["length"]
    assert parts[-1].usage.completion_tokens == 9
    assert parts[-1].usage.prompt_tokens > 0


def test_chat_messages_go_through_the_template(generate: Generate) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    parts = list(generate(chat={"messages": messages}, sampling={"max_tokens": 4, "temperature": 0}))
    assert parts[-1].usage.prompt_tokens > 8


def test_logprobs_come_with_the_tokens(generate: Generate) -> None:
    sampling = {"max_tokens": 6, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    deltas = [d for part in generate(tokens={"ids": [400, 401, 402]}, sampling=sampling) for d in part.deltas]
    tokens = [token for delta in deltas for token in delta.token_ids]
    logprobs = [at for delta in deltas for at in delta.logprobs]
    assert [at.token_id for at in logprobs] == tokens
    assert all(len(at.top) == 2 and at.logprob == pytest.approx(at.top[0].logprob) for at in logprobs)


def test_two_choices_share_one_stream(generate: Generate) -> None:
    parts = list(generate(text="Two of them", sampling={"max_tokens": 5, "n": 2, "temperature": 1.0}))
    assert {delta.index for part in parts for delta in part.deltas} == {0, 1}


def test_cancel_frees_both_sides(generate: Generate, status: ClusterStatus) -> None:
    stream = generate(text="Never ending", sampling={"max_tokens": 3000, "ignore_eos": True})
    next(stream)
    assert status.read().router.in_flight == 1
    stream.cancel()
    status.wait_until_quiet()


def test_a_deadline_ends_the_call_and_frees_both_sides(generate: Generate, status: ClusterStatus) -> None:
    stream = generate(timeout=0.7, text="Too long", sampling={"max_tokens": 3000, "ignore_eos": True})
    with pytest.raises(grpc.RpcError) as error:
        list(stream)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    status.wait_until_quiet()


def test_health_is_served(channel: grpc.Channel) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "model": "other"}, grpc.StatusCode.NOT_FOUND),
        ({"text": "x", "sampling": {"max_tokens": 0}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "sampling": {"temperature": -1}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "sampling": {"top_p": 7}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "sampling": {"n": 999}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"tokens": {"ids": [400] * 5000}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"tokens": {"ids": [2**31]}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"chat": {"messages": []}}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_bad_input_is_refused_with_its_code(generate: Generate, fields: dict[str, Any], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(generate(**fields))
    assert error.value.code() is code
    assert error.value.details()


def test_many_cancelled_calls_leave_nothing(generate: Generate, status: ClusterStatus) -> None:
    streams = [generate(tokens={"ids": [500 + i] * 400}, sampling={"max_tokens": 500}) for i in range(16)]
    threads = [threading.Timer(0.02 * i, stream.cancel) for i, stream in enumerate(streams)]
    for thread in threads:
        thread.start()
    for stream in streams:
        with pytest.raises(grpc.RpcError) as error:
            list(stream)
        assert error.value.code() is grpc.StatusCode.CANCELLED
    for thread in threads:
        thread.join()
    status.wait_until_quiet()
