"""A router's gRPC face for the command line's tests: answers what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from cluster.config import parse_config
from cluster.release import release
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, kv_pb2, worker_pb2
from tests.deploy.cli.stub_lists import some_caches, some_events, some_leases, some_requests


@dataclass
class StubRouter(admin_pb2_grpc.AdminServicer, inference_pb2_grpc.InferenceServicer):
    """`refusal` ends every call; a `forgetful` one has no journal. `pieces` is the text of an answer, ended by
    `finish`, or never when that is None. `later_statuses` are answered one after the other, and the
    last of them from then on."""

    status: admin_pb2.StatusResponse = field(default_factory=lambda: healthy_status())
    later_statuses: list[admin_pb2.StatusResponse] = field(default_factory=list)
    refusal: tuple[grpc.StatusCode, str] | None = None
    silent: bool = False
    forgetful: bool = False
    pieces: tuple[str, ...] = ("Hel", "lo", "!")
    finish: str | None = "stop"
    asked: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    drained: list[admin_pb2.DrainRequest] = field(default_factory=list)
    explained: list[admin_pb2.ExplainRequest] = field(default_factory=list)
    scaled: list[admin_pb2.ScaleRequest] = field(default_factory=list)
    paused: list[admin_pb2.PauseAutoscaleRequest] = field(default_factory=list)
    listed: list[admin_pb2.ListRequestsRequest] = field(default_factory=list)
    flushes: list[admin_pb2.FlushCacheRequest] = field(default_factory=list)
    flushed: list[admin_pb2.WorkerFlush] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=lambda: {"model": {"path": "none"}})
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""

    async def Status(self, request: admin_pb2.StatusRequest, context: Any) -> admin_pb2.StatusResponse:
        await self._refuse_or_stall(context)
        if self.later_statuses:
            self.status = self.later_statuses.pop(0)
        return self.status

    async def Explain(self, request: admin_pb2.ExplainRequest, context: Any) -> admin_pb2.Explanation:
        await self._refuse_or_stall(context)
        self.explained.append(request)
        if self.forgetful:
            await context.abort(grpc.StatusCode.NOT_FOUND, "it is in no journal")
        told = explained(request.request_id)
        if request.WhichOneof("what") == "dry_run":
            told.ClearField("arrived_unix_s")
        return told

    async def Trace(self, request: admin_pb2.TraceRequest, context: Any) -> admin_pb2.RequestTrace:
        await self._refuse_or_stall(context)
        return traced(request.request_id)

    async def Drain(self, request: admin_pb2.DrainRequest, context: Any) -> admin_pb2.DrainResponse:
        await self._refuse_or_stall(context)
        self.drained.append(request)
        return admin_pb2.DrainResponse(deadline_s=request.deadline_s if request.HasField("deadline_s") else 60.0)

    async def Scale(self, request: admin_pb2.ScaleRequest, context: Any) -> admin_pb2.AutoscaleReport:
        await self._refuse_or_stall(context)
        self.scaled.append(request)
        return sized()

    async def Autoscale(self, request: admin_pb2.AutoscaleRequest, context: Any) -> admin_pb2.AutoscaleReport:
        await self._refuse_or_stall(context)
        return sized()

    async def PauseAutoscale(self, request: admin_pb2.PauseAutoscaleRequest, context: Any) -> admin_pb2.AutoscaleReport:
        await self._refuse_or_stall(context)
        self.paused.append(request)
        return sized(paused=not request.resume, pause_reason=request.reason)

    async def ListRequests(
        self, request: admin_pb2.ListRequestsRequest, context: Any
    ) -> admin_pb2.ListRequestsResponse:
        await self._refuse_or_stall(context)
        self.listed.append(request)
        requests = [
            each for each in some_requests() if request.worker_id in ("", each.prefill_worker, each.decode_worker)
        ]
        return admin_pb2.ListRequestsResponse(router_id="router-1", requests=requests)

    async def ListLeases(self, request: admin_pb2.ListLeasesRequest, context: Any) -> admin_pb2.ListLeasesResponse:
        await self._refuse_or_stall(context)
        return admin_pb2.ListLeasesResponse(workers=some_leases())

    async def ListEvents(self, request: admin_pb2.ListEventsRequest, context: Any) -> admin_pb2.ListEventsResponse:
        await self._refuse_or_stall(context)
        return admin_pb2.ListEventsResponse(router_id="router-1", events=some_events())

    async def Cache(self, request: admin_pb2.CacheRequest, context: Any) -> admin_pb2.CacheResponse:
        await self._refuse_or_stall(context)
        return some_caches()

    async def FlushCache(self, request: admin_pb2.FlushCacheRequest, context: Any) -> admin_pb2.FlushCacheResponse:
        await self._refuse_or_stall(context)
        self.flushes.append(request)
        return admin_pb2.FlushCacheResponse(workers=self.flushed)

    async def ShowConfig(self, request: admin_pb2.ShowConfigRequest, context: Any) -> admin_pb2.ShowConfigResponse:
        await self._refuse_or_stall(context)
        config = parse_config(self.config)
        return admin_pb2.ShowConfigResponse(
            router_id="router-1",
            effective_json=json.dumps(config.model_dump(mode="json")),
            given_json=json.dumps(config.model_dump(mode="json", exclude_unset=True)),
            version=release(),
        )

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.asked.append(request)
        await self._refuse_or_stall(context)
        try:
            for piece in self.pieces:
                yield response(piece)
            if self.finish is None:
                await asyncio.Event().wait()
            yield response("", self.finish or "")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def ListModels(self, request: inference_pb2.ListModelsRequest, context: Any) -> Any:
        raise NotImplementedError

    async def _refuse_or_stall(self, context: Any) -> None:
        if self.refusal:
            await context.abort(*self.refusal)
        if self.silent:
            await asyncio.Event().wait()


@asynccontextmanager
async def serving(router: StubRouter, admin: bool = True) -> AsyncIterator[StubRouter]:
    server = grpc.aio.server()
    if admin:
        admin_pb2_grpc.add_AdminServicer_to_server(router, server)
    inference_pb2_grpc.add_InferenceServicer_to_server(router, server)
    router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield router
    finally:
        await server.stop(grace=0)


def response(text: str, finish: str = "") -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(deltas=[inference_pb2.Delta(text=text, finish_reason=finish)])


def explained(request_id: str) -> admin_pb2.Explanation:
    """Its first attempt failed, the second did not; how much was cached is not known."""
    candidates = [
        admin_pb2.PlacementCandidate(
            worker_id=worker_id, terms=[admin_pb2.CostTerm(name=name, seconds=seconds)], total_s=seconds
        )
        for worker_id, name, seconds in (("p1", "prefill", 0.25), ("p2", "queue", 0.5))
    ]
    decision = admin_pb2.PlacementDecision(
        question="prefill",
        chosen="p1",
        runner_up="p2",
        candidates=candidates,
        left_out=3,
        because="the least predicted time",
    )
    failed = admin_pb2.AttemptReport(leg="prefill", worker_id="p1", outcome="failed", reason="worker broke")
    made = admin_pb2.AttemptReport(leg="prefill", worker_id="p2", outcome="completed")
    rung = admin_pb2.TransferRung(
        attempt_id=f"{request_id}/decode3", transport="grpc", outcome="landed", blocks=10, bytes=1 << 20
    )
    return admin_pb2.Explanation(
        rungs=[rung],
        arrived_unix_s=1_700_000_000.0,
        request_id=request_id,
        prompt_tokens=100,
        cached_tokens_predicted=64,
        predicted=admin_pb2.Timing(ttft_s=0.25),
        decisions=[decision],
        attempts=[failed, made],
        outcome="completed",
    )


def sized(**more: Any) -> admin_pb2.AutoscaleReport:
    """A prefill pool that an operator bounded, of which the speed is not known; a decode pool of fixed size."""
    prefill = admin_pb2.PoolScaling(
        role=worker_pb2.ROLE_PREFILL,
        size=3,
        running=2,
        least=2,
        most=6,
        scales=True,
        ordered=True,
        because="2.60 needed: 3 wanted",
        inputs={"tokens/s of a worker": math.nan, "arriving tokens/s": 1820.5},
        needs=[admin_pb2.ScalingNeed(rule="flow", workers=2.6, because="1820 tokens/s expected")],
        limits=[admin_pb2.ScalingLimit(name="budget", size=3, because="the budget of 6 is for both pools")],
        changes=[admin_pb2.ScalingChange(unix_s=1_700_000_000.0, before=2, after=3, because="2.60 needed")],
    )
    decode = admin_pb2.PoolScaling(role=worker_pb2.ROLE_DECODE, size=2, running=2, least=2, most=2, because="fixed")
    return admin_pb2.AutoscaleReport(
        pools=[prefill, decode], decided_s=0.5, cost=5.0, budget=6.0, router_age_s={"router-1": 0.2}, **more
    )


def traced(request_id: str) -> admin_pb2.RequestTrace:
    """A request, its decode leg, and the transfer in that, which failed."""
    spans = [
        admin_pb2.TraceSpan(name="request", span_id="a1", duration_s=0.5, attributes={"outcome": "completed"}),
        admin_pb2.TraceSpan(
            name="decode", span_id="b2", parent_id="a1", at_s=0.1, duration_s=0.4, attributes={"worker_id": "d1"}
        ),
        admin_pb2.TraceSpan(
            name="transfer nixl",
            span_id="c3",
            parent_id="b2",
            at_s=0.11,
            duration_s=0.02,
            attributes={"outcome": "failed", "blocks": "0"},
            failed="no route",
        ),
    ]
    return admin_pb2.RequestTrace(request_id=request_id, router_id="router-1", trace_id="4b" * 16, spans=spans)


def healthy_status() -> admin_pb2.StatusResponse:
    """One worker a pool; the decode worker pulled 7 blocks, and one pull failed."""
    prefill, decode = worker_pb2.ROLE_PREFILL, worker_pb2.ROLE_DECODE
    landed = kv_pb2.TransferCount(transport="nixl", outcome="landed", count=3, blocks=7, bytes=7_000, seconds=0.5)
    failed = kv_pb2.TransferCount(transport="nixl", outcome="failed", count=1)
    sent = worker_pb2.Counters(blocks_sent=7, bytes_sent=7_000, leases_offered=4, leases_released=3, pinned_blocks=2)
    pulled = worker_pb2.Counters(transfers=[landed, failed], recomputed_requests=1, attempts_by_outcome={"finished": 4})
    return admin_pb2.StatusResponse(
        router_id="router-1",
        model="demo",
        pools=[admin_pb2.PoolStatus(role=role, ready=1, total=1) for role in (prefill, decode)],
        workers=[_worker("p1", prefill, sent, leases=1), _worker("d1", decode, pulled)],
        router=admin_pb2.RouterCounters(
            requests_by_outcome={"finished": 4, "cancelled": 1},
            in_flight=2,
            disaggregated=4,
            whole=1,
            queued=1,
            recoveries={"stalled": 2, "error": 1},
            retries_refused=3,
            slow_workers=1,
        ),
        version=release(),
        store=admin_pb2.StoreStatus(degraded=True, degraded_s=1.5, reason="gone", routers=2, dropped_writes=3),
    )


def _worker(
    worker_id: str, role: worker_pb2.Role.ValueType, counters: worker_pb2.Counters, leases: int = 0
) -> admin_pb2.WorkerStatus:
    description = worker_pb2.WorkerDescription(
        worker_id=worker_id,
        role=role,
        epoch=2**60 + 1,
        state=worker_pb2.WORKER_STATE_READY,
        engine="simulated",
        model="demo",
        version=release(),
        load=worker_pb2.Load(running=1, queued_prefill_tokens=300, kv_usage=0.25, leases=leases),
        counters=counters,
    )
    return admin_pb2.WorkerStatus(description=description, address="127.0.0.1:4242", heard_s=0.25, clock_ahead_s=-0.125)
