"""The engine protocol without a model: deterministic tokens, real blocks and leases, and time on an injected clock.

What a step yields is `SimulatedBatch`'s business; this module adds time, pulls and the hand-off. Starts at once and
imports no engine, so that everything around an engine can be tested, and simulated by the thousand. A prefetch ends at
once and fetches nothing: here prompts are not computed in chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.block_changes import BlockDelta
from cluster.clock import Clock
from cluster.config import EngineConfig, ModelConfig
from cluster.engine import (
    EngineInfo,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    Leg,
    TransferRung,
)
from cluster.errors import EngineFailed, InvalidRequest, TicketRefused, TransferFailed
from cluster.kv_link import Handoff, KvStats
from cluster.simulated_batch import Finished, Pull, SimulatedBatch

__all__ = ["Handoff", "SimulatedEngine"]

_DEFAULT_MODEL_LEN = 131_072


class SimulatedEngine:
    """Without a `handoff` a prefill leg yields no ticket and a decode leg is refused."""

    def __init__(self, model: ModelConfig, engine: EngineConfig, clock: Clock, handoff: Handoff | None = None) -> None:
        self._model = model
        self._config = engine
        self._timing = engine.simulated
        self._clock = clock
        self._handoff = handoff
        self._batch = SimulatedBatch(model.served_name, engine.simulated, engine.block_size, self._max_model_len)
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._rungs: dict[str, tuple[TransferRung, ...]] = {}  # of attempts that are not over
        self._changed = asyncio.Event()
        self._blocks_changed = asyncio.Event()
        self._between_steps = asyncio.Event()
        self._between_steps.set()
        self._failure: EngineFailed | None = None
        self._prefetched: list[str] = []
        self._pinned = self._recomputed = 0

    @property
    def batch(self) -> SimulatedBatch:
        """For inspection."""
        return self._batch

    async def start(self) -> EngineInfo:
        source = "" if self._handoff is None else await self._handoff.start(self._take_back)
        return EngineInfo(
            engine="simulated",
            model=self._model.served_name,
            max_model_len=self._max_model_len,
            block_size=self._config.block_size,
            num_blocks=self._timing.num_blocks,
            fingerprint=b"" if self._handoff is None else self._handoff.fingerprint,
            source=source,
        )

    async def submit(self, request: EngineRequest) -> None:
        """Raises `InvalidRequest` for a request that this engine can never finish."""
        self._raise_failure()
        self._check(request)
        if request.leg is Leg.PREFETCH:
            self._prefetched.append(request.attempt_id)
        else:
            self._batch.add(request, self._handed_over(request))
        self._changed.set()

    async def abort(self, attempt_ids: Sequence[str]) -> None:
        self._raise_failure()
        for attempt_id in attempt_ids:
            if (pull := self._pulls.get(attempt_id)) is not None:
                pull.cancel()
            self._batch.abort(attempt_id)
            self._rungs.pop(attempt_id, None)
        self._prefetched = [attempt_id for attempt_id in self._prefetched if attempt_id not in attempt_ids]
        self._changed.set()

    async def step(self) -> list[EngineOutput]:
        while True:
            self._raise_failure()
            if self._prefetched:
                ended, self._prefetched = self._prefetched, []
                return [EngineOutput(attempt_id, [], finish_reason=FinishReason.LENGTH) for attempt_id in ended]
            for pull in self._batch.admit():
                self._start_pull(pull)
            self._tell_blocks()
            plan = self._batch.plan_step()
            if plan is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._between_steps.clear()
            await self._clock.sleep(self._timing.step_s + self._timing.prefill_token_s * plan.prompt_tokens)
            self._between_steps.set()
            self._raise_failure()
            result = self._batch.finish_step(plan)
            self._tell_blocks()
            tickets = {finished.attempt_id: self._offer(finished) for finished in result.to_offer}
            if result.outputs:
                return [self._completed(output, tickets) for output in result.outputs]

    async def block_changes(self) -> BlockDelta:
        while not self._batch.pool.changes:
            self._raise_failure()
            self._blocks_changed.clear()
            await self._blocks_changed.wait()
        return self._batch.pool.changes.take()

    def load(self) -> EngineLoad:
        return EngineLoad(self._batch.running, self._batch.waiting, self._batch.pool.usage)

    async def release(self, lease_id: str) -> None:
        self._raise_failure()
        if self._handoff is not None:
            await self._handoff.release(lease_id)

    async def answer(self) -> None:
        self._raise_failure()
        await self._between_steps.wait()

    async def stats(self) -> EngineStats:
        self._raise_failure()
        kv, load = KvStats() if self._handoff is None else await self._handoff.stats(), self.load()
        return EngineStats(
            running=load.running,
            waiting=load.waiting,
            kv_usage=load.kv_usage,
            leases=kv.leases,
            pinned_blocks=self._pinned,
            leases_offered=kv.leases_offered,
            leases_released=kv.leases_released,
            leases_expired=kv.leases_expired,
            blocks_sent=kv.blocks_sent,
            bytes_sent=kv.bytes_sent,
            recomputed_requests=self._recomputed,
            transfers=kv.transfers,
        )

    async def settle(self) -> None:
        """Blocks come back at once."""
        self._raise_failure()

    async def forget_prefixes(self) -> bool:
        self._raise_failure()
        forgotten = self._batch.pool.forget()
        self._tell_blocks()
        return forgotten

    async def close(self) -> None:
        self.fail("the engine was closed")
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)
        if self._handoff is not None:
            await self._handoff.close()

    def fail(self, reason: str) -> None:
        """The engine is dead from now on, as if its process had died. The first reason stays."""
        if self._failure is None:
            self._failure = EngineFailed(reason)
        self._changed.set()
        self._blocks_changed.set()

    @property
    def _max_model_len(self) -> int:
        return self._model.max_model_len or _DEFAULT_MODEL_LEN

    def _tell_blocks(self) -> None:
        if self._batch.pool.changes:
            self._blocks_changed.set()

    def _check(self, request: EngineRequest) -> None:
        length, room = len(request.prompt_token_ids), self._timing.num_blocks * self._config.block_size
        if length >= self._max_model_len:
            raise InvalidRequest(f"a prompt of {length} tokens leaves no room for output: {self._max_model_len} in all")
        output = 1 if request.leg is Leg.PREFILL else request.sampling.max_tokens
        if output < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {output}")
        if length + output > room:
            raise InvalidRequest(f"{length} + {output} tokens never fit the {room} of the KV cache")
        if request.attempt_id in self._batch:
            raise InvalidRequest(f"attempt {request.attempt_id!r} is already here")
        if request.leg is Leg.DECODE and self._handoff is None:
            raise InvalidRequest("this engine has no hand-off: it cannot continue from a ticket")

    def _handed_over(self, request: EngineRequest) -> int:
        if request.leg is not Leg.DECODE or self._handoff is None:
            return 0
        try:
            return self._handoff.tokens_in(request.ticket)
        except TicketRefused:
            self._recomputed += 1
            return 0

    def _start_pull(self, pull: Pull) -> None:
        task = asyncio.create_task(self._pull(pull), name=f"pull {pull.attempt_id}")
        self._pulls[pull.attempt_id] = task
        task.add_done_callback(lambda _: self._pulls.pop(pull.attempt_id, None))

    async def _pull(self, pull: Pull) -> None:
        assert self._handoff is not None  # a decode leg without one was refused
        try:
            rungs = await self._handoff.pull(pull.ticket, pull.missing_blocks)
            self._landed(pull.attempt_id, rungs, success=True)
        except TransferFailed as error:
            self._recomputed += bool(pull.missing_blocks)
            self._landed(pull.attempt_id, (TransferRung("simulated", "failed", reason=str(error)),), success=False)
        except Exception as error:
            self.fail(f"the hand-off broke: {error!r}")
        finally:
            self._changed.set()

    def _landed(self, attempt_id: str, rungs: tuple[TransferRung, ...], success: bool) -> None:
        if attempt_id in self._batch:
            self._rungs[attempt_id] = rungs
        self._batch.landed(attempt_id, success)

    def _completed(self, output: EngineOutput, tickets: Mapping[str, bytes]) -> EngineOutput:
        """With what comes with the last output of an attempt."""
        if output.finish_reason is None:
            return output
        ticket, rungs = tickets.get(output.attempt_id, b""), self._rungs.pop(output.attempt_id, ())
        return replace(output, ticket=ticket, rungs=rungs) if ticket or rungs else output

    def _offer(self, finished: Finished) -> bytes:
        if self._handoff is None:
            self._batch.pool.release(finished.blocks)
            return b""
        self._pinned += len(finished.blocks)
        return self._handoff.offer(finished.attempt_id, finished.num_tokens, finished.blocks)

    def _take_back(self, blocks: Sequence[int]) -> None:
        self._pinned -= len(blocks)
        self._batch.pool.release(blocks)
        self._changed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
