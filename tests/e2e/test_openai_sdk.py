"""The OpenAI client that users have, against a real cluster."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.e2e.cluster_status import ClusterStatus

pytestmark = [pytest.mark.engine, pytest.mark.timeout(580)]

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about relay races."}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Looks the weather up.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def test_chat_answers_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=12, temperature=0)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=40, temperature=0)
    parts = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=40, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for part in parts:
        text += part.choices[0].delta.content or "" if part.choices else ""
        usage = part.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_completions_take_text_and_token_ids(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="demo", prompt="The quick brown fox", max_tokens=8, temperature=0)
    by_ids = client.completions.create(model="demo", prompt=[400, 500, 600], max_tokens=8, temperature=0)
    assert by_text.choices[0].text
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == 3


def test_one_token_is_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=[400] * 70, max_tokens=1, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_a_stop_string_ends_the_answer_before_itself(client: openai.OpenAI) -> None:
    free = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=40, temperature=0)
    text = free.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = client.completions.create(
        model="demo", prompt="Once upon a time", max_tokens=40, temperature=0, stop=[stop]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == text[: text.index(stop)]


def test_two_choices_are_two_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=16, n=2, temperature=1.0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_logprobs_come_for_every_token_across_the_hand_off(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=10, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for position in logprobs.content:
        assert position.logprob <= 0
        assert position.logprob == pytest.approx(max(top.logprob for top in position.top_logprobs), abs=1e-4)


def test_a_named_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=200,
        temperature=0,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "weather"
    arguments = json.loads(calls[0].function.arguments)
    assert set(arguments) == {"city", "days"}


def test_structured_output_follows_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "wheels": {"type": "integer", "enum": [2, 4]}},
        "required": ["colour", "wheels"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=100,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "car", "schema": schema, "strict": True}},
    )
    car = json.loads(answer.choices[0].message.content or "")
    assert car["colour"] in ("red", "green")
    assert car["wheels"] in (2, 4)


def test_closing_a_stream_frees_both_sides(client: openai.OpenAI, status: ClusterStatus) -> None:
    stream = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=3000, temperature=1.0, stream=True)
    for _, part in zip(range(5), stream, strict=False):
        assert part.choices
    assert status.read().router.in_flight == 1
    stream.close()
    status.wait_until_quiet()


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
