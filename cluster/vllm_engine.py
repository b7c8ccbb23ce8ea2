"""The engine protocol over vLLM's engine core, which runs in a process beside this one.

Owns the attempts in flight and the line to the connector inside the engine core (`KvLink`); what blocks are and how
they move it does not know. The settings of that connector come in `VllmSpec.kv_transfer`, unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from cluster.block_changes import BlockDelta
from cluster.engine import EngineInfo, EngineLoad, EngineOutput, EngineRequest, EngineStats, Leg
from cluster.errors import EngineFailed, InvalidRequest
from cluster.kv_link import ConnectorDialect, KvLink, KvStats
from cluster.vllm_core import VllmCore, VllmSpec
from cluster.vllm_events import VllmEvents
from cluster.vllm_messages import check_prompt, check_seed, from_core_output, set_connector_params, to_core_request

_CALL_S = 10.0
_POKES = 5


class VllmEngine:
    """`link` reaches the connector that `spec.kv_transfer` names; None for an engine without a hand-off. `dialect` is
    for a connector that is not ours."""

    def __init__(self, spec: VllmSpec, link: KvLink | None = None, dialect: ConnectorDialect | None = None) -> None:
        self._spec = spec
        self._link = link
        self._dialect = dialect
        self._core = VllmCore(spec)
        self._events: VllmEvents | None = None
        self._closed = asyncio.Event()
        self._attempts: dict[str, EngineRequest] = {}
        self._load = EngineLoad()
        self._max_model_len = self._vocabulary = 0
        self._fears_seeds = False
        self._failure: EngineFailed | None = None

    async def start(self) -> EngineInfo:
        await self._core.start()
        try:
            return await self._describe()
        except BaseException:
            await self.close()
            raise

    async def submit(self, request: EngineRequest) -> None:
        """Raises `InvalidRequest` for a prompt or parameters that this engine cannot take."""
        check_prompt(request, self._max_model_len, self._vocabulary)
        if request.attempt_id in self._attempts:
            raise InvalidRequest(f"attempt {request.attempt_id!r} is already here")
        core_request = to_core_request(request)
        if self._dialect is not None:
            set_connector_params(core_request, self._dialect.ask(request))
        if self._fears_seeds:
            check_seed(core_request)
        self._attempts[request.attempt_id] = request
        try:
            async with self._call("take a request"):
                await self._core.client.add_request_async(core_request)
        except BaseException:
            self._forget(request.attempt_id)
            raise

    async def abort(self, attempt_ids: Sequence[str]) -> None:
        known = [attempt_id for attempt_id in attempt_ids if self._forget(attempt_id)]
        if known:
            async with self._call("abort"):
                await self._core.client.abort_requests_async(known)

    async def step(self) -> list[EngineOutput]:
        self._raise_failure()
        try:
            outputs = await self._core.client.get_output_async()
        except Exception as error:
            raise await self._fail() from error
        if (stats := outputs.scheduler_stats) is not None:
            waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
            self._load = EngineLoad(stats.num_running_reqs, waiting, stats.kv_cache_usage)
            if self._dialect is not None:
                self._dialect.stepped(self._load, stats.kv_connector_stats or {})
        translated = [self._translate(output) for output in outputs.outputs]
        return [output for output in translated if output is not None]

    async def block_changes(self) -> BlockDelta:
        self._raise_failure()
        if self._events is not None:
            return await self._events.changes()
        await self._closed.wait()
        raise await self._fail()

    def load(self) -> EngineLoad:
        return self._load

    async def release(self, lease_id: str) -> None:
        if self._link is not None:
            await self._link.release(lease_id)

    async def answer(self) -> None:
        await self._poke()

    async def stats(self) -> EngineStats:
        kv = await self._link_stats()
        return EngineStats(
            running=self._load.running,
            waiting=self._load.waiting,
            kv_usage=self._load.kv_usage,
            leases=kv.leases,
            pinned_blocks=kv.pinned_blocks,
            pending_releases=kv.pending_releases,
            leases_offered=kv.leases_offered,
            leases_released=kv.leases_released,
            leases_expired=kv.leases_expired,
            blocks_sent=kv.blocks_sent,
            bytes_sent=kv.bytes_sent,
            recomputed_requests=kv.recomputed_requests,
            transfers=kv.transfers,
        )

    async def settle(self) -> None:
        """The connector takes blocks back on the engine's own thread, at its next step: asks for one while some wait.
        The step follows the answer to a poke, hence more than one."""
        for _ in range(_POKES):
            if not (await self._link_stats()).pending_releases:
                return
            await self._poke()

    async def forget_prefixes(self) -> bool:
        await self.settle()  # blocks of ended leases are no longer in use
        async with self._call("forget its prefixes"):
            return await self._core.client.reset_prefix_cache_async()

    async def close(self) -> None:
        if self._failure is None:
            self._failure = EngineFailed("the engine was closed")
        self._closed.set()
        if self._events is not None:
            self._events.close()
        try:
            if self._link is not None:
                await self._link.close()
        finally:
            await self._core.close()

    async def _describe(self) -> EngineInfo:
        config = self._core.config
        self._max_model_len = config.model_config.max_model_len
        self._vocabulary = config.model_config.get_vocab_size()
        self._fears_seeds = self._spec.engine.device == "cpu" and config.scheduler_config.enable_chunked_prefill
        source, fingerprint = "", b""
        if self._link is not None:
            async with asyncio.timeout(self._spec.engine.start_deadline_s):
                source, fingerprint = await self._link.address(), await self._link.fingerprint()
        if self._spec.events is not None:
            num_blocks = config.cache_config.num_gpu_blocks
            self._events = VllmEvents(self._spec.events, self._spec.model.served_name, num_blocks)
            await self._events.start()
        return EngineInfo(
            engine="vllm",
            model=self._spec.model.served_name,
            max_model_len=self._max_model_len,
            block_size=config.cache_config.block_size,
            num_blocks=config.cache_config.num_gpu_blocks,
            fingerprint=fingerprint,
            source=source,
        )

    def _translate(self, output: Any) -> EngineOutput | None:
        """Of an attempt that was aborted only a ticket is told: somebody must release its lease."""
        if (request := self._attempts.get(output.request_id)) is None:
            stray = from_core_output(output, None)
            return stray if stray.ticket else None
        translated = from_core_output(output, request.sampling.logprobs)
        if (dialect := self._dialect) is not None:
            if translated.origin is not None:
                dialect.began(request, translated.origin)
            if output.kv_transfer_params and request.leg is Leg.PREFILL:
                translated = replace(translated, ticket=dialect.ticket(request, output.kv_transfer_params))
        if output.finish_reason is not None:
            self._forget(request.attempt_id)
        return translated

    def _forget(self, attempt_id: str) -> bool:
        """Whether the attempt was here."""
        if self._dialect is not None:
            self._dialect.ended(attempt_id)
        return self._attempts.pop(attempt_id, None) is not None

    async def _link_stats(self) -> KvStats:
        self._raise_failure()
        return KvStats() if self._link is None else await self._link.stats()

    async def _poke(self) -> None:
        """Any utility call makes an idle engine loop look whether its connector has work; this one costs nothing."""
        async with self._call("answer"):
            await self._core.client.call_utility_async("get_weight_version")

    @asynccontextmanager
    async def _call(self, verb: str) -> AsyncIterator[None]:
        self._raise_failure()
        try:
            async with asyncio.timeout(_CALL_S):
                yield
        except TimeoutError:
            raise EngineFailed(f"the engine core did not {verb} within {_CALL_S:g} s") from None
        except EngineDeadError as error:
            raise await self._fail() from error

    async def _fail(self) -> EngineFailed:
        if self._failure is None:
            self._failure = await self._core.death()
        return self._failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
