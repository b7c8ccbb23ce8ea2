"""Load over HTTP: a number of closed-loop streams, and what each felt. Knows the OpenAI completions API, no server."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

_DEADLINE_S = 120.0


@dataclass
class Samples:
    """Seconds. `ttft`: from sending a request to its first token; `itl`: between two messages of a stream."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    requests: int = 0
    wall: float = 0.0

    def add(self, other: Samples) -> None:
        self.ttft += other.ttft
        self.itl += other.itl
        self.requests += other.requests
        self.wall += other.wall

    def summary(self) -> dict[str, object]:
        return {
            "rps": round(self.requests / self.wall, 2),
            "ttft_ms": percentiles(self.ttft),
            "itl_ms": percentiles(self.itl),
        }


def random_prompts(count: int, tokens: int, seed: int) -> list[list[int]]:
    """Prompts of plain vocabulary that share no prefix; length varies by a tenth around `tokens`."""
    rng = random.Random(seed)
    spread = tokens // 10
    return [[rng.randrange(300, 4000) for _ in range(tokens + rng.randint(-spread, spread))] for _ in range(count)]


async def drive(url: str, model: str, prompts: Sequence[list[int]], streams: int, output_tokens: int) -> Samples:
    """Sends every prompt once, at most `streams` at a time, and reads every stream to its end.

    Raises `AssertionError` if an answer is not `output_tokens` long: a short answer would flatter the rate.
    """
    samples = Samples()
    waiting = list(reversed(prompts))
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    connector = aiohttp.TCPConnector(limit=streams)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one_stream() -> None:
            while waiting:
                await _one_request(session, url, model, waiting.pop(), output_tokens, samples)

        begin = time.perf_counter()
        await asyncio.gather(*(one_stream() for _ in range(streams)))
        samples.wall = time.perf_counter() - begin
    return samples


async def _one_request(
    session: aiohttp.ClientSession, url: str, model: str, prompt: list[int], output_tokens: int, samples: Samples
) -> None:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    last = time.perf_counter()
    usage = None
    first = True
    async with session.post(f"{url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            message = json.loads(line[6:])
            if not message["choices"]:
                usage = message["usage"]
                continue
            (samples.ttft if first else samples.itl).append(now - last)
            first, last = False, now
    assert usage is not None, "the stream ended without its usage"
    assert usage["completion_tokens"] == output_tokens, usage
    samples.requests += 1


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """In milliseconds, of seconds."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50": at(0.5), "p99": at(0.99)}
