"""One router: fleet, frontend and both edges, put together and started in order. Knows no Ray; whoever runs it brings a
directory and serves `app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from cluster.clock import Clock
from cluster.config import Config, RouterConfig
from cluster.errors import EngineFailed
from cluster.membership import Directory
from cluster.metrics import Outlet
from cluster.scaling.frame import ScalingSetup
from cluster.scaling.seat import MemorySeat, ScalingSeat, real_moment
from cluster.tls import cluster_channels
from cluster.vllm_environment import prepare_environment
from router.admin_service import AdminService
from router.defence import Defence, defence_of
from router.dispatch import DispatchParts
from router.drains import Drains, drain_seconds
from router.explainer import Explainer
from router.fleet import Fleet
from router.fleet_events import FleetEvents
from router.fleet_report import report_of
from router.gate import Gate
from router.grpc_edge import GrpcEdge
from router.handover_rules import HandoverRules
from router.http_edge import HttpEdge
from router.inspection import Inspection
from router.journal import Journal
from router.observation import RouterObservation
from router.placing import PlacementSetup, Placing
from router.request_journal import RequestJournal
from router.scaling_link import ScalingLink
from router.scalings import Scalings
from router.session_pins import SharedPins
from router.shared_state import SharedState, open_shared_state
from router.task_end import end_tasks

if TYPE_CHECKING:
    from router.frontend import Frontend

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a router shares with others, who may come in, and who watches."""

    shared: SharedState
    scaling: ScalingLink
    defence: Defence
    observation: RouterObservation


class RouterReplica:
    """Made by `start_replica`. `app` is the HTTP API, `grpc_port` where the gRPC API listens."""

    def __init__(
        self,
        config: RouterConfig,
        frontend: Frontend,
        fleet: Fleet,
        around: Surroundings,
        edge: GrpcEdge,
        grpc_port: int,
    ) -> None:
        dispatch = fleet.dispatch
        self.app: ASGIApp = HttpEdge(
            frontend.app,
            config,
            lambda caller: dispatch.admit(caller=caller),
            lambda: fleet.ready,
            dispatch.leave,
            around.defence.guard,
            around.observation.page(fleet, around.shared, around.scaling),
            around.observation.watch,
        )
        self._observation = around.observation
        self.grpc_port = grpc_port
        self.fleet = fleet
        self.shared, self.scaling = around.shared, around.scaling
        self._grace_s = config.request_deadline_s
        self._frontend = frontend
        self._edge = edge
        self._health = asyncio.create_task(
            edge.follow(lambda: fleet.ready, lambda: fleet.next_change), name="publish health"
        )

    def check(self) -> None:
        """Raises `EngineFailed` when a background task of the router has died."""
        self.fleet.check()
        self.shared.check()
        self.scaling.check()
        if self._health.done():
            raise EngineFailed("the router no longer publishes its health")

    async def close(self, grace_s: float | None = None) -> None:
        """Lets gRPC calls finish within the grace, by default as long as a request may take; then ends all requests and
        the links. May be called twice."""
        await end_tasks([self._health])
        await self._edge.close(self._grace_s if grace_s is None else grace_s)
        await self.scaling.close()
        await self.fleet.close()
        await self.shared.close()
        await self._observation.close()
        self._frontend.close()


async def start_replica(
    config: Config,
    directory: Directory,
    clock: Clock,
    seat: ScalingSeat | None = None,
    outlet: Outlet | None = None,
) -> RouterReplica:
    """Loads the frontend, then joins the fleet. Without a `seat` no pool changes its size. `outlet`: where metrics go,
    beside the page that is asked for.

    Raises `ConfigError`, `StartFailed`, and then leaves nothing behind."""
    prepare_environment(config.model, config.engine)
    async with contextlib.AsyncExitStack() as opened:
        replica = await _started(config, directory, clock, seat or MemorySeat(real_moment), outlet, opened)
        opened.pop_all()  # from now on the replica's to close
    # A million objects of imported modules live as long as the process: no collection need look at them again.
    gc.collect()
    gc.freeze()
    return replica


async def _started(
    config: Config,
    directory: Directory,
    clock: Clock,
    seat: ScalingSeat,
    outlet: Outlet | None,
    opened: contextlib.AsyncExitStack,
) -> RouterReplica:
    """`opened` gets what is to be closed should the rest fail."""
    router_id = f"router-{secrets.token_hex(4)}"
    rules = HandoverRules.of(config.kv_transfer)
    defence, channels = defence_of(config, clock.now), cluster_channels(config.security.cluster_tls)
    watched = RouterObservation(config.observability, router_id, clock)
    opened.push_async_callback(watched.close)
    shared = open_shared_state(config, router_id, clock)
    opened.push_async_callback(shared.close)
    seed = secrets.randbits(32)
    pins = SharedPins(shared.mirror) if config.store.shared else None
    events = FleetEvents()
    placing = Placing(PlacementSetup.of(config), clock.now, seed, shared.mirror, pins, events)
    send, recall = (shared.mirror.record, shared.mirror.recall) if config.store.shared else (_keep_here, _nowhere_else)
    journal = Journal(router_id, config.store.journal_records, send, recall)
    told = watched.requests, watched.traced, events
    written = RequestJournal(journal, clock.now, time.time, rules.first_token_from_prefill, *told)
    gate = Gate(config.admission, config.router.max_in_flight, clock.now, shared.claims)
    scaling = ScalingLink(ScalingSetup.of(config), seat, clock)
    parts = DispatchParts(placing, written, rules, gate, lambda: shared.mirror.marks, scaling.may_begin)
    fleet = Fleet(config.router, directory, clock, router_id, seed, parts, channels=channels)
    frontend = await _frontend(config, fleet)
    opened.callback(frontend.close)
    explainer = Explainer(router_id, journal, frontend.text, placing, clock.now, fleet.dispatch.rules, defence.guard)
    drains = Drains(fleet, shared.mirror, drain_seconds(config))
    inspection = Inspection(router_id, fleet, journal, written, config)
    parts_asked = explainer, shared, drains, Scalings(scaling), inspection
    admin = AdminService(fleet, router_id, config.model.served_name, *parts_asked)
    waiting = config.admission.queue.max_requests
    edge = GrpcEdge(config.router, frontend.text, admin, waiting, fleet.dispatch.leave, defence, watched.watch)
    await shared.start()
    opened.push_async_callback(edge.close, 0)
    port = await edge.start()
    opened.push_async_callback(fleet.close)
    await fleet.start()
    opened.push_async_callback(scaling.close)
    scaling.start(lambda: report_of(router_id, fleet.dispatch))
    if outlet is not None:
        watched.start(fleet, shared, scaling, outlet)
    logger.info("%s serves %s; gRPC on port %d", router_id, config.model.served_name, port)
    around = Surroundings(shared, scaling, defence, watched)
    return RouterReplica(config.router, frontend, fleet, around, edge, port)


async def _frontend(config: Config, fleet: Fleet) -> Frontend:
    """Importing it takes many seconds, which must not stop this event loop."""
    module = await asyncio.to_thread(importlib.import_module, "router.frontend")
    frontend: Frontend = await module.build_frontend(config, fleet.dispatch)
    return frontend


def _keep_here(request_id: str, body: bytes) -> None:
    """Records stay with the router that wrote them."""


async def _nowhere_else(request_id: str) -> bytes | None:
    return None
