"""Streams of clients, over gRPC and over HTTP, and all that each of them got and when. What a stream must say follows
from its prompt."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

import aiohttp
import grpc.aio

from protos.baton.v1 import inference_pb2 as pb
from protos.baton.v1.inference_pb2_grpc import InferenceStub
from tests.chaos.scene import LOCAL
from tests.router.simulated_cluster import expected_tokens

VOCABULARY = 4096
MODEL = "demo"
DEADLINE_S = 60.0
_SLACK_S = 5.0
_CHANNELS = 12
_CONVERSATIONS = 40


class End(Enum):
    WHOLE = "whole"
    LOST = "lost"
    WRONG = "wrong"
    HUNG = "hung"


@dataclass
class Stream:
    """`arrivals`: of each message with tokens, seconds of the monotonic clock. `journal_id`: as the router knows it."""

    request_id: str
    prompt: list[int]
    wanted: int
    began: float = 0.0
    ended: float = 0.0
    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    end: End = End.LOST
    error: str = ""
    journal_id: str = ""

    def take(self, tokens: list[int]) -> None:
        if tokens:
            self.tokens += tokens
            self.arrivals.append(time.monotonic())

    def close(self, error: str = "", hung: bool = False) -> None:
        """A stream with an error is lost, even if all of it had come."""
        self.ended, self.error = time.monotonic(), error
        if self.tokens != expected_tokens(self.prompt, len(self.tokens), VOCABULARY):
            self.end = End.WRONG
        elif hung:
            self.end = End.HUNG
        elif not error and len(self.tokens) == self.wanted:
            self.end = End.WHOLE


def prompts(seed: int) -> list[tuple[list[int], int]]:
    """Endless in use: openings that several streams share, then something of their own; and how much is wanted."""
    draw = random.Random(seed)
    openings = [_words(draw, draw.randint(64, 256)) for _ in range(_CONVERSATIONS)]
    return [
        (draw.choice(openings) + _words(draw, draw.randint(8, 120)), draw.choice((1, 8, 20, 30, 40, 60)))
        for _ in range(20_000)
    ]


def _words(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(300, 4_000) for _ in range(count)]


class Clients:
    """Each has one stream after the other, that part of them over HTTP. `stop` lets those that run come to their
    end."""

    def __init__(self, http: str, grpc_address: str, seed: int, http_share: float = 0.25) -> None:
        self._http = http
        self._grpc_address = grpc_address
        self._seed = seed
        self._http_share = http_share
        self._draw = random.Random(seed + 1)
        self._work = iter(prompts(seed))
        self._stopping = False
        self.streams: list[Stream] = []

    def stop(self) -> None:
        self._stopping = True

    async def run(self, clients: int) -> None:
        channels = [grpc.aio.insecure_channel(self._grpc_address, options=LOCAL) for _ in range(_CHANNELS)]
        stubs = [InferenceStub(channel) for channel in channels]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(self._client(stubs[i % _CHANNELS], session) for i in range(clients)))
        for channel in channels:
            await channel.close()

    async def _client(self, stub: InferenceStub, session: aiohttp.ClientSession) -> None:
        while not self._stopping:
            prompt, wanted = next(self._work)
            stream = Stream(f"chaos-{self._seed}-{len(self.streams)}", prompt, wanted, time.monotonic())
            self.streams.append(stream)
            over_http = self._draw.random() < self._http_share
            said = _over_http(session, self._http, stream) if over_http else _over_grpc(stub, stream)
            await _read(said, stream)


async def _read(said: AsyncIterator[list[int]], stream: Stream) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S + _SLACK_S):
            async for tokens in said:
                stream.take(tokens)
    except TimeoutError:
        stream.close("no end", hung=True)
    except grpc.aio.AioRpcError as error:
        stream.close(f"{error.code().name}: {error.details()}")
    except (aiohttp.ClientError, RuntimeError) as error:
        stream.close(f"{type(error).__name__}: {error}")
    else:
        stream.close()


async def _over_grpc(stub: InferenceStub, stream: Stream) -> AsyncIterator[list[int]]:
    sampling = pb.SamplingParameters(max_tokens=stream.wanted, temperature=0.0, ignore_eos=True)
    prompt = pb.TokenPrompt(ids=stream.prompt)
    request = pb.GenerateRequest(tokens=prompt, sampling=sampling, request_id=stream.request_id)
    call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse] = stub.Generate(request)  # type: ignore[assignment]
    async for message in call:
        stream.journal_id = message.request_id
        for delta in message.deltas:
            yield list(delta.token_ids)


async def _over_http(session: aiohttp.ClientSession, url: str, stream: Stream) -> AsyncIterator[list[int]]:
    body = {
        "model": MODEL,
        "prompt": stream.prompt,
        "max_tokens": stream.wanted,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    headers = {"x-request-id": stream.request_id}
    async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        done = False
        async for line in response.content:
            if line.startswith(b"data: {"):
                message = json.loads(line[6:])
                if "error" in message:
                    raise RuntimeError(str(message["error"]))
                stream.journal_id = message["id"]
                for choice in message["choices"]:
                    yield choice["token_ids"] or []
            done = done or line.startswith(b"data: [DONE]")
        if not done:
            raise RuntimeError("the stream was cut without a word")
