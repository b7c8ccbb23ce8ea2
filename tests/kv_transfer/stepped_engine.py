"""A vLLM engine in a process of its own, given the worker's own requests and stepped one by one by the test."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PrefillInProgress, Sampling
from tests.kv_transfer.engine_process import EngineChild, EngineProcess

CHUNK = 256
_DEADLINE_S = 40.0


@dataclass(frozen=True)
class Ended:
    """All that an attempt said, and what it found of its prompt."""

    tokens: list[int]
    reason: FinishReason | None
    ticket: bytes
    cached: int
    pulled: int


class SteppedChild(EngineChild):
    engine_options: ClassVar[dict[str, Any]] = {"enable_chunked_prefill": True, "max_num_batched_tokens": CHUNK}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.outputs: dict[str, list[EngineOutput]] = {}
        self.tickets: dict[str, bytes] = {}
        self.read_before = 0

    def submit(self, request: EngineRequest) -> None:
        from cluster.vllm_messages import to_core_request

        if request.leg is Leg.PREFETCH:
            self.read_before = self._worker_half()._mover._follower.blocks_read
        self.outputs[request.attempt_id] = []
        self.core.add_request(*self.core.preprocess_add_request(to_core_request(request)))

    def step(self, times: int = 1) -> None:
        from cluster.vllm_messages import from_core_output

        for _ in range(times):
            outputs, executed = self.core.step_fn()
            self.core.post_step(executed)
            for batch in (outputs or {}).values():
                for output in batch.outputs:
                    self.outputs[output.request_id].append(from_core_output(output, None))
            if not executed:
                time.sleep(0.001)

    def run(self, attempt_id: str) -> Ended:
        """Steps until the attempt has ended."""
        end = time.monotonic() + _DEADLINE_S
        while not (said := self.outputs[attempt_id]) or said[-1].finish_reason is None:
            assert time.monotonic() < end, f"{attempt_id} does not end: {self.states()}"
            self.step()
        return self.ended(attempt_id)

    def ended(self, attempt_id: str) -> Ended:
        said = self.outputs.pop(attempt_id)
        self.tickets[attempt_id] = said[-1].ticket
        origin = next((output.origin for output in said if output.origin is not None), None)
        return Ended(
            tokens=[token for output in said for token in output.token_ids],
            reason=said[-1].finish_reason,
            ticket=said[-1].ticket,
            cached=0 if origin is None else origin.cached_tokens,
            pulled=0 if origin is None else origin.pulled_tokens,
        )

    def abort(self, *attempt_ids: str) -> None:
        self.core.abort_requests(list(attempt_ids))

    def release(self, attempt_id: str) -> None:
        """The ordinary lease of that attempt will not be read."""
        from protos.baton.v1 import kv_pb2

        self.half._book.release(kv_pb2.Ticket.FromString(self.tickets[attempt_id]).lease_id)

    def states(self) -> dict[str, str]:
        return {request.request_id: request.status.name for request in self.scheduler.requests.values()}

    def step_until_pulled(self, blocks: int) -> None:
        """Steps until the follower has read so many blocks for the last prefetch. It may be over by then."""
        end = time.monotonic() + _DEADLINE_S
        while self.blocks_read() < blocks:
            assert time.monotonic() < end, f"{self.blocks_read()} of {blocks} blocks were read"
            self.step()

    def blocks_read(self) -> int:
        blocks: int = self._worker_half()._mover._follower.blocks_read - self.read_before
        return blocks

    def prefetch_phase(self, attempt_id: str) -> str:
        prefetch = self.half._prefetcher._prefetches.get(attempt_id)
        return "gone" if prefetch is None else str(prefetch.phase.name)


class SteppedEngine(EngineProcess):
    child = SteppedChild

    def submit(self, request: EngineRequest) -> None:
        self.ask("submit", request)

    def run(self, attempt_id: str) -> Ended:
        ended: Ended = self.ask("run", attempt_id)
        return ended


def prefill(attempt_id: str, ids: list[int], params: bytes) -> EngineRequest:
    return EngineRequest(attempt_id, Leg.PREFILL, ids, Sampling(1), params)


def prefetch(attempt_id: str, ids: list[int], origin: PrefillInProgress) -> EngineRequest:
    return EngineRequest(attempt_id, Leg.PREFETCH, ids, Sampling(1), follow=origin)


def decode(attempt_id: str, ids: list[int], tokens: int, ticket: bytes, after: str, params: bytes) -> EngineRequest:
    sampling = Sampling(tokens, ignore_eos=True)
    return EngineRequest(attempt_id, Leg.DECODE, ids, sampling, params, ticket, after_attempt_id=after)
