"""Requests over HTTP at random times, whether or not earlier ones were answered, and what became of each. Knows the
OpenAI completions API, no server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp

OUTPUT = 8


@dataclass
class Answer:
    """`at`: when it was asked for. Seconds of the monotonic clock; `first_s`, `end_s` from then on."""

    at: float
    status: int = 0
    first_s: float = float("inf")
    end_s: float = float("inf")

    def came_within(self, first_s: float) -> bool:
        """Its first token, and all of it at last."""
        return self.status == 200 and self.first_s <= first_s and self.end_s < float("inf")


async def offer_load(
    session: aiohttp.ClientSession, url: str, prompts: Iterator[list[int]], rps: float, for_s: float
) -> list[Answer]:
    """Returns when the last one has ended."""
    draw = random.Random(int(rps * 1000))
    begin = time.monotonic()
    tasks: list[asyncio.Task[Answer]] = []
    due = begin + draw.expovariate(rps)
    while due < begin + for_s:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(_ask(session, url, next(prompts))))
        due += draw.expovariate(rps)
    return await asyncio.gather(*tasks)


async def _ask(session: aiohttp.ClientSession, url: str, prompt: list[int]) -> Answer:
    answer = Answer(time.monotonic())
    body = {"model": "demo", "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
    try:
        async with session.post(f"{url}/v1/completions", json=body | {"stream": True}) as response:
            async for line in response.content:
                if line.startswith(b"data: {") and answer.first_s == float("inf"):
                    answer.first_s = time.monotonic() - answer.at
            answer.status = response.status
            answer.end_s = time.monotonic() - answer.at
    except (aiohttp.ClientError, TimeoutError):
        pass  # status 0: it failed
    return answer
