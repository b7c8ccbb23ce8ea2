"""Conversations as load over HTTP: every turn repeats all that was said and answered before it.

Knows the OpenAI completions API, no server. What the engine says it found in its cache is held against what it could
have found.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_DEADLINE_S = 120.0
_WORDS = range(300, 4_000)  # plain vocabulary of the demo model


@dataclass(frozen=True)
class Shape:
    """Tokens: `opening` of the first turn and `turn` of each later one, from least to most, and of every answer.
    Conversation `i` is one user of stream `i % streams`, and nobody speaks on a stream for `pause_s` after an
    answer, from least to most."""

    conversations: int
    turns: int
    streams: int
    opening: tuple[int, int]
    turn: tuple[int, int]
    answer: int
    pause_s: tuple[float, float]

    @property
    def mean_tokens(self) -> float:
        """All conversations' tokens at their end, on average."""
        later = sum(self.turn) / 2 + self.answer
        return self.conversations * (sum(self.opening) / 2 + self.answer + (self.turns - 1) * later)


@dataclass(frozen=True)
class Turn:
    """One answered request. `past_tokens`: said and answered before it; `cached_tokens`: by the engine's own count."""

    request_id: str
    past_tokens: int
    cached_tokens: int
    ttft_s: float

    def reusable(self, block: int) -> int:
        """Full blocks of the past: the last token of an answer was never an engine's input."""
        return max(self.past_tokens - 1, 0) // block

    def hits(self, block: int) -> int:
        return min(self.cached_tokens // block, self.reusable(block))


@dataclass
class _Talk:
    name: str
    draw: random.Random
    said: list[int] = field(default_factory=list)


async def converse(url: str, shape: Shape, seed: int) -> list[Turn]:
    """All conversations to their end. The users of one stream speak one after the other, in an order drawn anew for
    every turn; streams do not wait for each other. The same seed says the same, but for what is answered.

    Raises `AssertionError` for an answer that is not as long as it should be.
    """
    talks = [_Talk(f"talk-{seed}-{i}", random.Random(f"{seed}/{i}")) for i in range(shape.conversations)]
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=shape.streams)) as session:

        async def stream(number: int) -> list[Turn]:
            users, draw, turns = talks[number :: shape.streams], random.Random(f"{seed}+{number}"), []
            for _ in range(shape.turns):
                for talk in draw.sample(users, len(users)):
                    turns.append(await _speak(session, url, talk, shape))
                    await asyncio.sleep(draw.uniform(*shape.pause_s))
            return turns

        by_stream = await asyncio.gather(*map(stream, range(shape.streams)))
    return [turn for turns in by_stream for turn in turns]


async def _speak(session: aiohttp.ClientSession, url: str, talk: _Talk, shape: Shape) -> Turn:
    past = len(talk.said)
    talk.said += talk.draw.choices(_WORDS, k=talk.draw.randint(*(shape.turn if past else shape.opening)))
    body = {
        "model": "demo",
        "prompt": talk.said,
        "max_tokens": shape.answer,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    began = time.perf_counter()
    first: float | None = None
    answer: list[int] = []
    usage: dict[str, Any] = {}
    request_id = ""
    async with session.post(f"{url}/v1/completions", json=body, headers={"x-session-id": talk.name}) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            message = json.loads(line[6:])
            request_id, usage = message["id"], message.get("usage") or usage
            for choice in message["choices"]:
                first = time.perf_counter() if first is None else first
                answer += choice["token_ids"]
    assert first is not None, "the stream ended without a token"
    assert len(answer) == shape.answer, usage
    talk.said += answer
    cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0
    return Turn(request_id, past, cached, first - began)


def hit_share(turns: Sequence[Turn], block: int) -> float:
    return sum(turn.hits(block) for turn in turns) / max(sum(turn.reusable(block) for turn in turns), 1)
