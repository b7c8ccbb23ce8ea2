"""vLLM's OpenAI server over scripted workers, used through the clients that users have: openai's SDK and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import pytest_asyncio

from cluster.errors import EngineFailed
from protos.baton.v1 import admin_pb2, inference_pb2, worker_pb2
from tests.router.frontend_deployment import CHAT, STREAMS, Deployment, cleared, decode_stalls, deployed
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


async def test_a_completion_is_the_text_of_the_tokens_of_both_legs(service: Deployment) -> None:
    answer = await service.complete()
    assert answer.choices[0].text == await service.text_of(expected_tokens([5, 6, 7], 6))
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
    assert [submit.leg for submit in service.decode.submits] == [worker_pb2.LEG_DECODE]


async def test_a_streamed_chat_is_the_same_text_with_usage_at_its_end(service: Deployment) -> None:
    service.prefill.cached_tokens = 4
    whole = await service.chat()
    stream = await service.chat(stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 4
    assert chunks[-2].choices[0].finish_reason == "length"
    service.prefill.cached_tokens = 0


async def test_the_first_token_is_streamed_while_decode_still_waits(service: Deployment) -> None:
    service.decode.gate.clear()
    stream = await service.complete(stream=True)
    first = await anext(aiter(stream))
    assert first.choices[0].text == await service.text_of(expected_tokens([5, 6, 7], 1))
    service.decode.gate.set()
    assert len([chunk async for chunk in stream]) == 5


async def test_a_stop_string_ends_the_request_and_its_worker(service: Deployment) -> None:
    text = await service.text_of(expected_tokens([5, 6, 7], 3))
    service.decode.free_tokens = 2
    service.decode.gate.clear()
    answer = await service.complete(max_tokens=400, stop=[text[-2:]])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == text[:-2]
    await service.decode.until(lambda: len(service.decode.aborted) == 1)


async def test_a_stop_token_at_the_first_position_never_reaches_decode(service: Deployment) -> None:
    (first,) = expected_tokens([5, 6, 7], 1)
    answer = await service.complete(extra_body={"stop_token_ids": [first]})
    assert (answer.choices[0].finish_reason, answer.choices[0].stop_reason) == ("stop", first)
    assert service.decode.submits == []


async def test_one_token_takes_one_leg(service: Deployment) -> None:
    answer = await service.complete(max_tokens=1)
    assert answer.usage.completion_tokens == 1
    assert [submit.leg for submit in service.prefill.submits] == [worker_pb2.LEG_WHOLE]


async def test_two_choices_are_two_requests(service: Deployment) -> None:
    answer = await service.chat(n=2, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == 12
    assert len(service.prefill.submits) == 2


async def test_logprobs_of_both_legs_come_back(service: Deployment) -> None:
    answer = await service.chat(logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert [round(at.logprob, 3) for at in content] == [-0.5] * 6
    assert [len(at.top_logprobs) for at in content] == [2] * 6
    completion = await service.complete(logprobs=1)
    assert len(completion.choices[0].logprobs.token_logprobs) == 6


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 3, "temperature": 0.9},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"extra_body": {"repetition_penalty": 1.2}},
        {"extra_body": {"min_tokens": 2}},
        {"extra_body": {"bad_words": ["zzz"]}},
        {"extra_body": {"structured_outputs": {"regex": "[a-z]+"}}},
        {"extra_body": {"repetition_detection": {"max_pattern_size": 3, "min_count": 9}}},
    ],
)
async def test_sampling_state_that_spans_tokens_makes_decode_sample_them_all(
    service: Deployment, fields: dict[str, Any]
) -> None:
    await service.complete(**fields)
    assert service.decode.submits[0].prompt_token_ids == [5, 6, 7]
    assert service.decode.submits[0].sampling.max_tokens == 6


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.9, "top_p": 0.5}, {"logit_bias": {"9": 1}}, {"seed": 3}])
async def test_without_such_state_decode_starts_behind_the_first_token(
    service: Deployment, fields: dict[str, Any]
) -> None:
    await service.complete(**fields)
    assert service.decode.submits[0].sampling.max_tokens == 5


async def test_a_client_that_goes_away_ends_its_request(service: Deployment) -> None:
    service.decode.free_tokens = 2
    service.decode.gate.clear()
    stream = await service.complete(stream=True, max_tokens=400)
    await anext(aiter(stream))
    await stream.close()
    await service.decode.until(lambda: len(service.decode.aborted) == 1)


async def test_a_failure_in_mid_stream_is_an_error_event(service: Deployment) -> None:
    service.decode.refuse = "out of memory"
    service.prefill.refuse = ""
    body = {"model": "demo", "prompt": [5, 6, 7], "max_tokens": 6, "stream": True}
    # The prefill worker gives the first token, then every worker fails the rest.
    service.prefill.gate.clear()
    posting = asyncio.create_task(service.http.post("/v1/completions", json=body))
    await service.prefill.until(lambda: len(service.prefill.submits) == 1)
    service.prefill.refuse = "out of memory"
    service.prefill.gate.set()
    response = await posting
    events = response.text.split("\n\n")
    assert response.status_code == 200
    assert '"text"' in events[0]
    assert "out of memory" in events[1]
    assert events[1].startswith('data: {"error"')
    assert events[2] == "data: [DONE]"


async def test_a_failure_before_the_first_token_has_its_status_even_for_a_stream(service: Deployment) -> None:
    service.prefill.refuse = service.decode.refuse = "out of memory"
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match="out of memory") as caught:
            await service.complete(stream=stream)
        assert caught.value.status_code == 502


async def test_choices_and_logprobs_are_the_same_when_their_decode_worker_stalls(service: Deployment) -> None:
    fields: dict[str, Any] = {"n": 2, "temperature": 1.0, "logprobs": 1, "max_tokens": 8}
    undisturbed = await service.complete(**fields)
    async with decode_stalls(service, choices=2, tokens_left=5):
        moved = await service.complete(**fields)
    assert [choice.model_dump() for choice in moved.choices] == [c.model_dump() for c in undisturbed.choices]
    assert moved.usage.completion_tokens == 16


async def test_a_stop_string_that_began_on_a_worker_that_stalled_is_found(service: Deployment) -> None:
    before = await service.text_of(expected_tokens([5, 6, 7], 3))
    text = await service.text_of(expected_tokens([5, 6, 7], 4))
    stop = text[len(before) - 1 : len(before) + 1]
    async with decode_stalls(service, choices=1, tokens_left=5):
        stream = await service.complete(stream=True, max_tokens=8, stop=[stop])
        chunks = [chunk.choices[0] async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


async def test_what_cannot_be_carried_over_ends_with_an_error_event(service: Deployment) -> None:
    body = {"model": "demo", "prompt": [5, 6, 7], "max_tokens": 9, "stream": True, "presence_penalty": 0.5}
    async with decode_stalls(service, choices=1, tokens_left=7):
        events = (await service.http.post("/v1/completions", json=body)).text.split("\n\n")
    assert [event.startswith('data: {"error"') for event in events[-3:]] == [True, False, False]
    assert "worker d is stalled: no step" in events[-3]
    assert events[-2] == "data: [DONE]"


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_of_any_route_that_cannot_go_on_ends_with_the_cause(service: Deployment, path: str) -> None:
    body = {"model": "demo", "stream": True, **STREAMS[path]}
    service.decode.free_tokens = 2
    service.decode.gate.clear()
    async with service.http.stream("POST", path, json=body) as response:
        lines = response.aiter_lines()
        assert await anext(lines), "the first token has come"
        service.replica.fleet.dispatch.fail_all(EngineFailed("the fleet is gone"))
        rest = "\n".join([line async for line in lines])
    assert response.status_code == 200
    assert '"message": "the fleet is gone"' in rest
    assert "validation error" not in rest


BAD_COMPLETIONS: list[tuple[dict[str, Any], int]] = [
    ({"max_tokens": 0}, 400),
    ({"prompt": ""}, 400),
    ({"prompt": []}, 400),
    ({"prompt": [1] * 600}, 400),
    ({"prompt": "word " * 3000}, 400),
    ({"prompt": [10**6]}, 400),
    ({"model": "nope"}, 404),
    ({"temperature": -1}, 400),
    ({"top_p": 2}, 400),
    ({"n": 99}, 400),
    ({"seed": "x"}, 400),
    ({"stop_token_ids": [10**6]}, 400),
    ({"logit_bias": {"1000000": 1}}, 400),
    ({"min_tokens": 50}, 400),
    ({"logprobs": 1000}, 400),
    ({"structured_outputs": {"regex": "("}}, 400),
    ({"kv_transfer_params": {"remote_host": "x"}}, 400),
    ({"max_tokens": 10**6}, 400),
    ({"prompt": "a", "echo": True, "logprobs": 1}, 400),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "status"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
async def test_bad_input_is_answered_before_anything_is_queued(
    service: Deployment, fields: dict[str, Any], status: int, stream: bool
) -> None:
    body = {"model": "demo", "prompt": "hi", "max_tokens": 4, "stream": stream} | fields
    response = await service.http.post("/v1/completions", json=body)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) >= {"message", "type", "param", "code"}
    assert service.prefill.submits == []


@pytest.mark.parametrize(
    "messages", [[], "hi", [{"content": "no role"}], [{"role": "user", "content": [{"type": "?"}]}]]
)
async def test_bad_chats_are_refused(service: Deployment, messages: object) -> None:
    response = await service.http.post("/v1/chat/completions", json={"model": "demo", "messages": messages})
    assert response.status_code == 400
    assert service.prefill.submits == []


async def test_models_and_tokens_are_told(service: Deployment) -> None:
    models = await service.openai.models.list()
    assert [model.id for model in models.data] == ["demo"]
    tokens = (await service.http.post("/tokenize", json={"model": "demo", "prompt": "hello"})).json()["tokens"]
    assert await service.text_of(tokens) == "hello"


async def test_responses_and_messages_work_too(service: Deployment) -> None:
    answer = await service.openai.responses.create(model="demo", input="hi", max_output_tokens=4)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 4
    body = {"model": "demo", "messages": CHAT, "max_tokens": 4}
    messages = await service.http.post("/v1/messages", json=body)
    assert messages.json()["usage"]["output_tokens"] == 4


# gRPC


async def test_the_grpc_text_is_the_http_text(service: Deployment) -> None:
    http = await service.complete(prompt="hello", logprobs=2)
    responses = await service.generate(text="hello", sampling={"max_tokens": 6, "temperature": 0, "logprobs": 2})
    deltas = [delta for response in responses for delta in response.deltas]
    assert "".join(delta.text for delta in deltas) == http.choices[0].text
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert sum(len(delta.logprobs) for delta in deltas) == 6
    usage = responses[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (http.usage.prompt_tokens, 6)
    assert not any(response.HasField("usage") for response in responses[:-1])


async def test_a_grpc_chat_goes_through_the_models_template(service: Deployment) -> None:
    http = await service.chat()
    responses = await service.generate(chat={"messages": CHAT}, sampling={"max_tokens": 6, "temperature": 0})
    assert responses[-1].usage.prompt_tokens == http.usage.prompt_tokens
    text = "".join(delta.text for response in responses for delta in response.deltas)
    assert text == http.choices[0].message.content


async def test_grpc_token_prompts_choices_and_stop_strings(service: Deployment) -> None:
    text = await service.text_of(expected_tokens([5, 6, 7], 3))
    sampling = {"max_tokens": 6, "temperature": 1, "n": 2, "stop": [text[-2:]]}
    responses = await service.generate(tokens={"ids": [5, 6, 7]}, sampling=sampling)
    ends = {d.index: (d.finish_reason, d.stop_reason) for r in responses for d in r.deltas if d.finish_reason}
    assert ends == {0: ("stop", text[-2:]), 1: ("stop", text[-2:])}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text": "hi", "model": "nope"}, grpc.StatusCode.NOT_FOUND),
        ({"tokens": {"ids": [1] * 600}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"tokens": {"ids": [10**6]}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "hi", "sampling": {"temperature": -1}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "hi", "sampling": {"top_p": 3}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "hi", "sampling": {"logprobs": 1000}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "hi", "sampling": {"stop_token_ids": [10**6]}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"chat": {"messages": [{"role": "user", "content": "w " * 3000}]}}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=str,
)
async def test_bad_grpc_input_is_refused_before_anything_is_queued(
    service: Deployment, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.generate(**fields)
    assert caught.value.code() is code
    assert caught.value.details()
    assert service.prefill.submits == []


async def test_a_cancelled_grpc_call_ends_its_request(service: Deployment) -> None:
    service.decode.free_tokens = 2
    service.decode.gate.clear()
    sampling = inference_pb2.SamplingParameters(max_tokens=400)
    call = service.grpc.Generate(inference_pb2.GenerateRequest(text="hi", sampling=sampling))
    await anext(aiter(call))
    call.cancel()
    # On a machine that stands still for seconds the decode worker counts as silent, and prefill has the whole request.
    await eventually(lambda: len(service.decode.aborted) + len(service.prefill.aborted) == 1)


async def test_an_expired_grpc_call_ends_its_request(service: Deployment) -> None:
    service.decode.gate.clear()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.generate(text="hi", sampling={"max_tokens": 400}, deadline_s=2.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await service.decode.until(lambda: len(service.decode.aborted) == 1)


async def test_when_no_worker_is_left_health_and_requests_say_so(service: Deployment) -> None:
    for worker in service.replica.fleet.dispatch.view:
        service.replica.fleet.dispatch.set_ready(worker.worker_id, False)
    assert (await service.http.get("/health")).status_code == 503
    with pytest.raises(openai.APIStatusError, match="no worker is ready") as caught:
        await service.complete()
    assert caught.value.status_code == 503
    with pytest.raises(grpc.aio.AioRpcError) as unavailable:
        await service.generate(text="hi")
    assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE
    for worker in service.replica.fleet.dispatch.view:
        service.replica.fleet.dispatch.set_ready(worker.worker_id, True)
    assert (await service.http.get("/health")).status_code == 200


async def test_the_id_of_an_answer_explains_it_and_sessions_are_known(service: Deployment) -> None:
    session = {"x-session-id": "talk"}
    ids = [
        (await service.complete(extra_headers=session)).id,
        (await service.chat(extra_headers=session)).id,
        (await service.complete(n=2, temperature=1.0, extra_headers=session)).id,
    ]
    request = inference_pb2.GenerateRequest(text="hi", request_id="mine")
    async for _ in service.grpc.Generate(request, timeout=30, metadata=(("x-session-id", "talk"),)):
        pass
    for request_id in [*ids, "mine"]:
        told = await service.admin.Explain(admin_pb2.ExplainRequest(request_id=request_id), timeout=10)
        assert (told.outcome, told.session_id) == ("completed", "talk")
        assert [decision.question for decision in told.decisions] == ["prefill", "decode"]
        assert [attempt.outcome for attempt in told.attempts] == ["completed", "completed"]
