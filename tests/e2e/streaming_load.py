"""Clients that stream completions over HTTP and gRPC without a pause, and check every token of every answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import httpx

from protos.baton.v1 import inference_pb2, inference_pb2_grpc
from tests.router.simulated_cluster import expected_tokens

LONGEST_S = 60.0


@dataclass
class Result:
    """`pause_s`: the longest time between two events."""

    error: str = ""
    tokens: int = 0
    pause_s: float = 0.0


@dataclass
class StreamingLoad:
    """`vocabulary` of the simulated engine. Some answers are `long`, most are `short` (tokens)."""

    url: str
    channel: grpc.aio.Channel
    vocabulary: int
    short: int = 40
    long: int = 400
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(7)
        self._stop = asyncio.Event()

    @property
    def failed(self) -> list[str]:
        return [result.error for result in self.results if result.error]

    @asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[None]:
        """So many clients, every third over gRPC, ask again and again until the block ends; then every answer is waited
        for."""
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=self.url, timeout=LONGEST_S, limits=limits, trust_env=False) as http:
            asking = [asyncio.create_task(self._ask_on(http, number)) for number in range(count)]
            try:
                yield
            finally:
                self._stop.set()
                await asyncio.gather(*asking)

    async def until(self, answers: int) -> None:
        """So many more answers."""
        goal = len(self.results) + answers
        async with asyncio.timeout(LONGEST_S):
            while len(self.results) < goal:  # noqa: ASYNC110  # tasks of this loop: a look costs nothing
                await asyncio.sleep(0.05)

    async def _ask_on(self, http: httpx.AsyncClient, number: int) -> None:
        for turn in itertools.count():
            if self._stop.is_set():
                return
            length = self.long if (number + turn) % 4 == 0 else self.short
            try:
                asked = self._ask_grpc(length) if number % 3 == 0 else self._ask(http, length)
                self.results.append(await asked)
            except Exception as error:
                self.results.append(Result(f"{type(error).__name__}: {error}"))

    async def _ask_grpc(self, length: int) -> Result:
        prompt = self._prompt()
        sampling = inference_pb2.SamplingParameters(max_tokens=length, temperature=0, ignore_eos=True)
        asked = inference_pb2.GenerateRequest(tokens=inference_pb2.TokenPrompt(ids=prompt), sampling=sampling)
        tokens: list[int] = []
        result, last = Result(), time.monotonic()
        async for response in inference_pb2_grpc.InferenceStub(self.channel).Generate(asked, timeout=LONGEST_S):
            now = time.monotonic()
            result.pause_s, last = max(result.pause_s, now - last), now
            tokens += [token for delta in response.deltas for token in delta.token_ids]
        result.tokens = len(tokens)
        if tokens != expected_tokens(prompt, length, self.vocabulary):
            result.error = f"wrong tokens over gRPC: {len(tokens)} of {length}"
        return result

    def _prompt(self) -> list[int]:
        return [self._draw.randrange(1, self.vocabulary) for _ in range(self._draw.randrange(20, 200))]

    async def _ask(self, http: httpx.AsyncClient, length: int) -> Result:
        prompt = self._prompt()
        asked = {
            "model": "demo", "prompt": prompt, "max_tokens": length, "stream": True, "ignore_eos": True,
            "temperature": 0, "return_token_ids": True,
        }  # fmt: skip
        tokens: list[int] = []
        result, last, done = Result(), time.monotonic(), False
        async with http.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code != 200:
                return Result(f"HTTP {response.status_code}: {(await response.aread())[:300]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                now = time.monotonic()
                result.pause_s, last = max(result.pause_s, now - last), now
                if line == "data: [DONE]":
                    done = True
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return Result(f"error event after {len(tokens)} tokens: {event['error']}")
                tokens += event["choices"][0]["token_ids"] or []
        result.tokens = len(tokens)
        if not done:
            result.error = f"cut after {len(tokens)} tokens"
        elif tokens != expected_tokens(prompt, length, self.vocabulary):
            result.error = f"wrong tokens: {len(tokens)} of {length}"
        return result
