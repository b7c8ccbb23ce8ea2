"""Requests that come at a steady pace whether or not earlier ones are answered, and what became of each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

LONGEST_S = 90.0


@dataclass(frozen=True)
class Kind:
    """Requests that come `per_s` times a second."""

    per_s: float
    prompt_tokens: int
    max_tokens: int


@dataclass
class PacedLoad:
    """`vocabulary` of the simulated engine. Every prompt is new, so that nothing of it is cached."""

    url: str
    vocabulary: int
    answered: int = 0
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(11)
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def pace(self, kind: Kind) -> AsyncIterator[None]:
        """Such requests until the block ends; then every answer is waited for."""
        pacing = asyncio.create_task(self._pace(kind))
        try:
            yield
        finally:
            pacing.cancel()
            await asyncio.gather(pacing, *self._asking, return_exceptions=True)

    async def ask(self, prompt_tokens: int, max_tokens: int) -> None:
        prompt = [self._draw.randrange(1, self.vocabulary) for _ in range(prompt_tokens)]
        asked = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=LONGEST_S, trust_env=False, verify=False) as http:
                response = await http.post("/v1/completions", json=asked)
            if response.status_code != 200:
                self.failed.append(f"HTTP {response.status_code}: {response.text[:300]}")
            elif (tokens := response.json()["usage"]["completion_tokens"]) != max_tokens:
                self.failed.append(f"{tokens} tokens of {max_tokens}")
        except Exception as error:
            self.failed.append(f"{type(error).__name__}: {error}")
        self.answered += 1

    async def _pace(self, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = asyncio.create_task(self.ask(kind.prompt_tokens, kind.max_tokens))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            due += 1 / kind.per_s
            await asyncio.sleep(max(0.0, due - loop.time()))
