"""An engine whose attempts are traced: the same engine, with a span for every attempt that came with a trace, and one
for each rung by which its blocks came.

Put around an engine only where traces are wanted, so that nothing is paid where they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.block_changes import BlockDelta
from cluster.engine import (
    Engine,
    EngineInfo,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    PromptOrigin,
    TransferRung,
)
from cluster.tracing import TRACEPARENT, Span, Spans, parse_traceparent, span_id

_WELL = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT)


@dataclass(slots=True)
class _Open:
    """`first_unix_s`: of its first output; 0 before."""

    request: EngineRequest
    trace_id: str
    parent_id: str
    began_unix_s: float
    first_unix_s: float = 0.0
    tokens: int = 0
    origin: PromptOrigin | None = None


class TracedEngine:
    """Implements `cluster.engine.Engine`. `wall`: seconds since 1970."""

    def __init__(self, engine: Engine, spans: Spans, worker_id: str, wall: Callable[[], float]) -> None:
        self._engine = engine
        self._spans = spans
        self._worker_id = worker_id
        self._wall = wall
        self._open: dict[str, _Open] = {}

    async def start(self) -> EngineInfo:
        return await self._engine.start()

    async def submit(self, request: EngineRequest) -> None:
        told = parse_traceparent(request.trace_headers.get(TRACEPARENT, ""))
        if told is not None and told[2]:
            self._open[request.attempt_id] = _Open(request, told[0], told[1], self._wall())
        try:
            await self._engine.submit(request)
        except BaseException as error:
            self._end(request.attempt_id, failed=str(error) or type(error).__name__)
            raise

    async def abort(self, attempt_ids: Sequence[str]) -> None:
        for attempt_id in attempt_ids:
            self._end(attempt_id, outcome=FinishReason.ABORT.value)
        await self._engine.abort(attempt_ids)

    async def step(self) -> list[EngineOutput]:
        try:
            outputs = await self._engine.step()
        except Exception as error:
            for attempt_id in list(self._open):
                self._end(attempt_id, failed=str(error) or type(error).__name__)
            raise
        if self._open:
            for output in outputs:
                self._note(output)
        return outputs

    async def block_changes(self) -> BlockDelta:
        return await self._engine.block_changes()

    def load(self) -> EngineLoad:
        return self._engine.load()

    async def release(self, lease_id: str) -> None:
        await self._engine.release(lease_id)

    async def answer(self) -> None:
        await self._engine.answer()

    async def stats(self) -> EngineStats:
        return await self._engine.stats()

    async def settle(self) -> None:
        await self._engine.settle()

    async def forget_prefixes(self) -> bool:
        return await self._engine.forget_prefixes()

    async def close(self) -> None:
        await self._engine.close()

    def _note(self, output: EngineOutput) -> None:
        held = self._open.get(output.attempt_id)
        if held is None:
            return
        held.tokens += len(output.token_ids)
        held.origin = output.origin or held.origin
        held.first_unix_s = held.first_unix_s or self._wall()
        if (reason := output.finish_reason) is not None:
            failed = "" if reason in _WELL else output.error or reason.value
            self._end(output.attempt_id, reason.value, failed, output.rungs)

    def _end(self, attempt_id: str, outcome: str = "", failed: str = "", rungs: tuple[TransferRung, ...] = ()) -> None:
        held = self._open.pop(attempt_id, None)
        if held is not None:
            own = Span(
                name=f"{held.request.leg.value} engine",
                trace_id=held.trace_id,
                span_id=span_id(held.trace_id, f"{attempt_id}/engine"),
                parent_id=held.parent_id,
                began_unix_s=held.began_unix_s,
                ended_unix_s=self._wall(),
                attributes=self._facts(held, outcome),
                failed=failed,
            )
            self._spans.send([own, *rung_spans(own, rungs)])

    def _facts(self, held: _Open, outcome: str) -> dict[str, str | int | float]:
        facts: dict[str, str | int | float] = {
            "baton.worker_id": self._worker_id,
            "baton.attempt_id": held.request.attempt_id,
            "baton.outcome": outcome,
            "baton.output_tokens": held.tokens,
        }
        if held.first_unix_s:
            facts["baton.first_output_s"] = held.first_unix_s - held.began_unix_s
        if (origin := held.origin) is not None:
            facts["baton.prompt_tokens"] = origin.prompt_tokens
            facts["baton.cached_tokens"] = origin.cached_tokens
            facts["baton.pulled_tokens"] = origin.pulled_tokens
        return facts


def rung_spans(parent: Span, rungs: Sequence[TransferRung]) -> Iterator[Span]:
    """What was tried for the blocks of an attempt; what took no time is none."""
    for number, rung in enumerate(rungs):
        if rung.began_unix_s:
            yield Span(
                name=f"transfer {rung.transport}",
                trace_id=parent.trace_id,
                span_id=span_id(parent.trace_id, f"{parent.span_id}/rung{number}"),
                parent_id=parent.span_id,
                began_unix_s=rung.began_unix_s,
                ended_unix_s=rung.began_unix_s + rung.seconds,
                attributes={
                    "baton.outcome": rung.outcome,
                    "baton.blocks": rung.blocks,
                    "baton.bytes": rung.bytes,
                    "baton.handshake_s": rung.handshake_s,
                },
                failed="" if rung.outcome == "landed" else rung.reason or rung.outcome,
            )
