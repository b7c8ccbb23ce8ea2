"""`baton.v1.Admin`: the operator's view, put together at the time of the call from what the workers answer."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import grpc

from cluster.engine import Role
from cluster.errors import BatonError, answer_for
from cluster.release import release
from cluster.store import DrainMark
from cluster.wire import role_to_wire
from protos.baton.v1 import admin_pb2, admin_pb2_grpc, worker_pb2
from router.drains import Drains
from router.explainer import Explainer
from router.fleet import Fleet
from router.fleet_reports import WorkerReport
from router.inspection import Inspection
from router.scalings import Scalings
from router.shared_state import SharedState

Answer = TypeVar("Answer")
_Context = grpc.aio.ServicerContext[Any, Any]
_DrainContext = grpc.aio.ServicerContext[admin_pb2.DrainRequest, admin_pb2.DrainResponse]


class AdminService(admin_pb2_grpc.AdminServicer):
    """`model`: the name that clients use. Without an `explainer` nothing can be explained; without `shared` this router
    is alone, without `drains` nothing can be drained, without `scalings` nothing scaled, without `inspection`
    nothing listed."""

    def __init__(  # noqa: PLR0913  a part for each kind of question
        self,
        fleet: Fleet,
        router_id: str,
        model: str,
        explainer: Explainer | None = None,
        shared: SharedState | None = None,
        drains: Drains | None = None,
        scalings: Scalings | None = None,
        inspection: Inspection | None = None,
    ) -> None:
        self._fleet = fleet
        self._router_id = router_id
        self._model = model
        self._explainer = explainer
        self._shared = shared
        self._drains = drains
        self._scalings = scalings
        self._inspection = inspection

    async def Status(self, request: admin_pb2.StatusRequest, context: object) -> admin_pb2.StatusResponse:
        reports = await self._fleet.describe(request.wait_s or None)
        return admin_pb2.StatusResponse(
            router_id=self._router_id,
            model=self._model,
            pools=[_pool(role, reports, self._sizes.get(role)) for role in Role],
            workers=[_worker(report, self._marks.get(report.record.worker_id)) for report in reports],
            router=self._fleet.dispatch.counters(),
            store=None if self._shared is None else self._shared.status(),
            version=release(),
        )

    async def Explain(self, request: admin_pb2.ExplainRequest, context: _Context) -> admin_pb2.Explanation:
        explainer = await self._explaining(context)
        if request.WhichOneof("what") == "dry_run":
            return await _answered(context, explainer.tried(request.dry_run))
        return await _found(context, explainer.recorded(request.request_id), request.request_id)

    async def Drain(self, request: admin_pb2.DrainRequest, context: _DrainContext) -> admin_pb2.DrainResponse:
        if self._drains is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this router has nowhere to keep the order")
        deadline_s: float | None = request.deadline_s if request.HasField("deadline_s") else None
        if request.undo:
            await _answered(context, self._drains.undo(request.worker_id))
            return admin_pb2.DrainResponse()
        ordered = self._drains.order(request.worker_id, request.reason, deadline_s)
        return admin_pb2.DrainResponse(deadline_s=await _answered(context, ordered))

    async def Scale(self, request: admin_pb2.ScaleRequest, context: _Context) -> admin_pb2.AutoscaleReport:
        return await _answered(context, (await self._scaled(context)).scale(request))

    async def Autoscale(self, request: admin_pb2.AutoscaleRequest, context: _Context) -> admin_pb2.AutoscaleReport:
        return await _answered(context, (await self._scaled(context)).report())

    async def PauseAutoscale(
        self, request: admin_pb2.PauseAutoscaleRequest, context: _Context
    ) -> admin_pb2.AutoscaleReport:
        return await _answered(context, (await self._scaled(context)).pause(request))

    async def Trace(self, request: admin_pb2.TraceRequest, context: _Context) -> admin_pb2.RequestTrace:
        explainer = await self._explaining(context)
        return await _found(context, explainer.traced(request.request_id), request.request_id)

    async def ListRequests(
        self, request: admin_pb2.ListRequestsRequest, context: _Context
    ) -> admin_pb2.ListRequestsResponse:
        return await _answered(context, (await self._inspected(context)).requests(request))

    async def ListLeases(self, request: admin_pb2.ListLeasesRequest, context: _Context) -> admin_pb2.ListLeasesResponse:
        return await _answered(context, (await self._inspected(context)).leases(request))

    async def ListEvents(self, request: admin_pb2.ListEventsRequest, context: _Context) -> admin_pb2.ListEventsResponse:
        return (await self._inspected(context)).events(request)

    async def Cache(self, request: admin_pb2.CacheRequest, context: _Context) -> admin_pb2.CacheResponse:
        return (await self._inspected(context)).cache()

    async def FlushCache(self, request: admin_pb2.FlushCacheRequest, context: _Context) -> admin_pb2.FlushCacheResponse:
        return await _answered(context, (await self._inspected(context)).flush(request))

    async def ShowConfig(self, request: admin_pb2.ShowConfigRequest, context: _Context) -> admin_pb2.ShowConfigResponse:
        return (await self._inspected(context)).config()

    async def _explaining(self, context: _Context) -> Explainer:
        if self._explainer is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this router keeps no journal")
        return self._explainer

    async def _scaled(self, context: _Context) -> Scalings:
        if self._scalings is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this router knows no autoscaler")
        return self._scalings

    async def _inspected(self, context: _Context) -> Inspection:
        if self._inspection is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this router lists nothing")
        return self._inspection

    @property
    def _sizes(self) -> Mapping[Role, int]:
        return {} if self._scalings is None else self._scalings.sizes

    @property
    def _marks(self) -> Mapping[str, DrainMark]:
        return {} if self._drains is None else self._drains.marks


async def _answered(context: _Context, answer: Awaitable[Answer]) -> Answer:
    try:
        return await answer
    except BatonError as error:
        await context.abort(answer_for(error).grpc, str(error))


async def _found(context: _Context, answer: Awaitable[Answer | None], request_id: str) -> Answer:
    """The journal's answer about a request."""
    told = await _answered(context, answer)
    if told is None:
        why = f"request {request_id} is in no journal: it is too long ago, or never was"
        await context.abort(grpc.StatusCode.NOT_FOUND, why)
    return told


def _pool(role: Role, reports: list[WorkerReport], wanted: int | None) -> admin_pb2.PoolStatus:
    members = [report for report in reports if report.record.role is role]
    ready = sum(report.ready for report in members)
    return admin_pb2.PoolStatus(role=role_to_wire(role), ready=ready, total=len(members), wanted=wanted)


def _worker(report: WorkerReport, mark: DrainMark | None) -> admin_pb2.WorkerStatus:
    """A silent worker is still named, with what the directory knows of it."""
    record = report.record
    description = report.description or worker_pb2.WorkerDescription(
        worker_id=record.worker_id, role=role_to_wire(record.role), epoch=record.epoch
    )
    return admin_pb2.WorkerStatus(
        description=description,
        address=record.address,
        unreachable=report.unreachable,
        drained=mark is not None,
        drain_reason="" if mark is None else mark.reason,
        age_s=report.age_s,
        heard_s=report.heard_s,
        clock_ahead_s=report.clock_ahead_s,
    )
