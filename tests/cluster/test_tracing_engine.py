"""A traced engine gives the same outputs, and a span for every attempt that came with a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.clock import RealClock
from cluster.config import EngineConfig, ModelConfig
from cluster.engine import EngineOutput, EngineRequest, Leg, Sampling
from cluster.errors import EngineFailed, InvalidRequest
from cluster.simulated_engine import SimulatedEngine
from cluster.tracing import Sampling as TraceSampling
from cluster.tracing import Span, TraceContext
from cluster.tracing_engine import TracedEngine
from tests.cluster.handoff_in_memory import MemoryHandoff

TRACE = TraceSampling(1.0, lambda: 0.0).begin()


class Kept:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def send(self, spans: Sequence[Span]) -> None:
        self.spans += spans


class Pair:
    """A prefill and a decode engine of one process, both traced."""

    def __init__(self) -> None:
        self.kept = Kept()
        shared: dict[str, MemoryHandoff] = {}
        self.now = 100.0
        self.prefill, self.decode = (self._engine(name, MemoryHandoff(shared)) for name in ("p1", "d1"))

    def _engine(self, worker_id: str, handoff: MemoryHandoff) -> TracedEngine:
        self.bare = SimulatedEngine(ModelConfig(path="none"), EngineConfig(kind="simulated"), RealClock(), handoff)
        return TracedEngine(self.bare, self.kept, worker_id, self.wall)

    def wall(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
async def pair() -> Pair:
    made = Pair()
    await made.prefill.start()
    await made.decode.start()
    return made


def request(attempt_id: str, leg: Leg, ticket: bytes = b"", trace: TraceContext | None = TRACE) -> EngineRequest:
    return EngineRequest(
        attempt_id=attempt_id,
        leg=leg,
        prompt_token_ids=list(range(1, 101)),
        sampling=Sampling(4),
        ticket=ticket,
        trace_headers={} if trace is None else trace.headers(attempt_id),
    )


async def run(engine: TracedEngine, asked: EngineRequest) -> list[EngineOutput]:
    await engine.submit(asked)
    outputs: list[EngineOutput] = []
    while not (outputs and outputs[-1].finish_reason):
        outputs += await engine.step()
    return outputs


async def test_both_legs_are_children_of_the_routers_attempts_and_the_transfer_of_its_leg(pair: Pair) -> None:
    (prefilled,) = await run(pair.prefill, request("r1/prefill1", Leg.PREFILL))
    outputs = await run(pair.decode, request("r1/decode2", Leg.DECODE, prefilled.ticket))
    prefill, decode = pair.kept.spans  # the hand-off in memory takes no time
    assert (prefill.name, decode.name) == ("prefill engine", "decode engine")
    assert prefill.parent_id == TRACE.span_of("r1/prefill1")
    assert decode.parent_id == TRACE.span_of("r1/decode2")
    assert {prefill.trace_id, decode.trace_id} == {TRACE.trace_id}
    assert decode.attributes["baton.output_tokens"] == sum(len(output.token_ids) for output in outputs) == 4
    assert decode.attributes["baton.pulled_tokens"] == 99
    assert prefill.began_unix_s < prefill.ended_unix_s <= decode.began_unix_s


async def test_what_comes_without_a_trace_or_is_not_sampled_leaves_none(pair: Pair) -> None:
    unsampled = TraceSampling(0.0, lambda: 0.0).begin()
    await run(pair.prefill, request("r1/whole1", Leg.WHOLE, trace=None))
    await run(pair.prefill, request("r2/whole1", Leg.WHOLE, trace=unsampled))
    assert pair.kept.spans == []


async def test_an_abort_a_refusal_and_a_dead_engine_end_their_spans(pair: Pair) -> None:
    await pair.decode.submit(request("r1/whole1", Leg.WHOLE))
    await pair.decode.abort(["r1/whole1", "unknown"])
    assert pair.kept.spans[-1].attributes["baton.outcome"] == "abort"
    with pytest.raises(InvalidRequest):
        await pair.decode.submit(replace(request("r2/whole1", Leg.WHOLE), sampling=Sampling(0)))
    assert "max_tokens" in pair.kept.spans[-1].failed
    await pair.decode.submit(request("r3/whole1", Leg.WHOLE))
    pair.bare.fail("the lights went out")
    with pytest.raises(EngineFailed):
        await pair.decode.step()
    assert pair.kept.spans[-1].failed == "the lights went out"
    assert len(pair.kept.spans) == 3
