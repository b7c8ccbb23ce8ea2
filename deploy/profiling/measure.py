"""Measures the engines of a live cluster from outside, over the public gRPC API: prompts one at a time, then more and
more streams at once, then long prompts that are handed over.

Owns its threads, one for each stream. It must not know the cost model.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import grpc

from cluster.engine_profile import Measured, PromptTime, StepTime
from cluster.errors import InvalidRequest
from deploy.cli.status_document import ClusterStatus
from protos.baton.v1 import inference_pb2 as pb
from protos.baton.v1.inference_pb2_grpc import InferenceStub

_SHORT_PROMPT = 32
_LEAST_TOKENS = 8  # of each stream, while all of them run
_COPIES = 4

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """`lengths`: of prompts, tokens. `batches`: sequences in one engine. `repeats`: of each prompt length. `output`:
    tokens of each stream. `vocabulary`: token ids are below. `ranks`: of one engine, each of which pulls its part.
    `call_s`: deadline of one request."""

    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int
    output: int
    vocabulary: int
    ranks: int
    call_s: float


class Bench:
    """`engines`: decode workers that share the streams. `status` asks the cluster for its counters. `seed`: of the
    token ids, so that no prompt is like another."""

    def __init__(
        self, channel: grpc.Channel, schedule: Schedule, engines: int, status: Callable[[], ClusterStatus], seed: int
    ) -> None:
        self._stub = InferenceStub(channel)
        self._schedule = schedule
        self._engines = engines
        self._status = status
        self._draw = random.Random(seed)

    def measure(self, say: Say) -> Measured:
        """Raises `grpc.RpcError`; `InvalidRequest` where nothing that was measured is of use."""
        self._first_token_s(self._schedule.lengths[0])  # what only the first request pays
        prompts = [self._prompt(length, say) for length in self._schedule.lengths]
        steps = [step for batch in self._schedule.batches if (step := self._step(batch, say)) is not None]
        if not steps:
            raise InvalidRequest("streams did not run together for long enough to be measured: let outputs be longer")
        return Measured(tuple(prompts), tuple(steps), self._copy(say))

    def _prompt(self, length: int, say: Say) -> PromptTime:
        seconds = median(self._first_token_s(length) for _ in range(self._schedule.repeats))
        say(f"prompt of {length} tokens: {seconds * 1e3:.1f} ms to the first token")
        return PromptTime(length, seconds)

    def _first_token_s(self, length: int) -> float:
        began = time.monotonic()
        return self._arrivals(self._tokens(length), 1)[0] - began

    def _step(self, batch: int, say: Say) -> StepTime | None:
        """None where the streams were not together for long enough."""
        output = self._schedule.output
        prompts = [self._tokens(_SHORT_PROMPT) for _ in range(batch * self._engines)]
        with ThreadPoolExecutor(len(prompts)) as threads:
            streams = list(threads.map(lambda prompt: self._arrivals(prompt, output), prompts))
        seconds = together_s(streams)
        if seconds is None:
            say(f"{batch} sequences: they were not together for long enough; left out")
            return None
        say(f"{batch} sequences: {seconds * 1e3:.2f} ms between tokens")
        return StepTime(batch, _SHORT_PROMPT + output // 2, seconds)

    def _copy(self, say: Say) -> float | None:
        """Bytes a second of one rank's pulls, by what the workers count: bytes of all ranks, but the seconds of a pull
        once, for its ranks pull at the same time. None where nothing is handed over."""
        before = _pulled(self._status())
        for _ in range(_COPIES):
            self._arrivals(self._tokens(self._schedule.lengths[-1]), 2)
        size, seconds = (after - old for after, old in zip(_pulled(self._status()), before, strict=True))
        if size <= 0 or seconds <= 0:
            say("no KV blocks moved: their bandwidth stays a guess (placement.disaggregate: always makes them move)")
            return None
        bandwidth = size / self._schedule.ranks / seconds
        say(f"KV blocks: {bandwidth / 1e6:.0f} MB/s for each rank")
        return bandwidth

    def _arrivals(self, prompt: list[int], output: int) -> list[float]:
        """When each token came."""
        sampling = pb.SamplingParameters(max_tokens=output, ignore_eos=True, temperature=0.0)
        request = pb.GenerateRequest(tokens=pb.TokenPrompt(ids=prompt), sampling=sampling)
        arrivals: list[float] = []
        for response in self._stub.Generate(request, timeout=self._schedule.call_s):
            now = time.monotonic()
            arrivals += [now for delta in response.deltas for _ in delta.token_ids]
        if not arrivals:
            raise InvalidRequest("a request ended without a token: see `baton get requests`")
        return arrivals

    def _tokens(self, length: int) -> list[int]:
        return [self._draw.randrange(self._schedule.vocabulary) for _ in range(length)]


def together_s(streams: Sequence[Sequence[float]]) -> float | None:
    """Seconds between tokens, in the middle of the streams, while all of them run; None where that is too short to
    tell."""
    since, until = max(each[0] for each in streams), min(each[-1] for each in streams)
    counts = [sum(since < at <= until for at in each) for each in streams]
    if until <= since or min(counts) < _LEAST_TOKENS:
        return None
    return median((until - since) / count for count in counts)


def _pulled(status: ClusterStatus) -> tuple[int, float]:
    landed = [each for each in status.counters.kv_transfers if each.outcome == "landed" and each.bytes]
    return sum(each.bytes for each in landed), sum(each.duration_s for each in landed)
