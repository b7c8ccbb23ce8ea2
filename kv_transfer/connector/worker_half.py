"""The half of the connector that lives beside the KV tensors of one rank: hands pulls to the mover's thread, reports
their ends.

Called on the rank's own thread, once a step; nothing here waits.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

from cluster.config import secret
from cluster.tls import Channels
from kv_transfer.block_frames import StreamLimits
from kv_transfer.block_permit import TicketRule
from kv_transfer.block_server import BlockServer
from kv_transfer.connections import Reader
from kv_transfer.connector.layout import fingerprint_of, layout_of
from kv_transfer.connector.messages import RankEndpoint, StepOrders, StepReport
from kv_transfer.engine_settings import ConnectorSettings
from kv_transfer.follower import Follower
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.ladder import LadderRules
from kv_transfer.mover import Mover, PullResult
from kv_transfer.mover_thread import MoverThread
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.transport import Endpoint, Layout, Transport


class WorkerHalf:
    def __init__(self, config: VllmConfig, settings: ConnectorSettings, num_blocks: int) -> None:
        self._config = config
        self._settings = settings
        self._num_blocks = num_blocks
        self._rank: int = config.parallel_config.rank
        self._mover: MoverThread
        self.transports: tuple[Transport[Any], ...] = ()
        self._on_cpu = True
        self._held: StepOrders | None = None
        self._ended: list[PullResult] = []
        self._step = 0

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        layout = layout_of(kv_caches, self._num_blocks)
        fingerprint = fingerprint_of(self._config, kv_caches)
        self._on_cpu = layout.memory == "DRAM"
        channels = self._settings.channels()
        rules = LadderRules.of(self._settings.transfer)
        self.transports = transports = self._build_transports(layout, rules, channels)
        offers = {transport.name: transport.offer() for transport in transports}
        self.endpoint = RankEndpoint(Endpoint(offers, layout), fingerprint)
        reader = Reader(self._settings.reader_id, self._rank, fingerprint, layout.block_bytes, channels)
        key, block_size = secret(self._settings.secret_env), self._config.cache_config.block_size
        self._mover = MoverThread(
            lambda: Mover(transports, reader, rules),
            self._serve,
            lambda mover: Follower(mover, key, block_size, self._settings.lease_s),
        )

    def before_forward(self, orders: StepOrders) -> None:
        """On CPU the forward pass blocks and nothing of an earlier one is in flight, so pulls start now and overlap
        it."""
        self._step = orders.step
        if self._on_cpu:
            self._follow(orders)
        else:
            self._held = orders

    def after_forward_launch(self) -> None:
        """On a GPU an earlier pass may still write; what is launched before this point is ordered before the pulls."""
        if self._held is not None:
            orders, self._held = self._held, None
            self._follow(orders)

    def results(self, finished: set[str]) -> KVConnectorTransferResults:
        """`finished`: requests that ended or were aborted; their pulls are no longer wanted."""
        self._mover.cancel(finished)
        self._ended = self._mover.take_results()
        return KVConnectorTransferResults(
            finished_recving={result.request_id for result in self._ended},
            failed_recving={result.request_id for result in self._ended if result.outcome != "landed"},
        )

    def report(self) -> StepReport | None:
        """After `results`, once. It reaches the scheduler with the step's tokens, hence after the step has run, also
        where the forward pass is only launched by now."""
        ended, self._ended = self._ended, []
        if not ended and not self._step:
            return None
        return StepReport(tuple((self._rank, result) for result in ended), self._step)

    def close(self) -> None:
        if hasattr(self, "_mover"):
            self._mover.close()

    def _build_transports(self, layout: Layout, rules: LadderRules, channels: Channels) -> tuple[Transport[Any], ...]:
        settings, transfer = self._settings, self._settings.transfer
        transports: list[Transport[Any]] = []
        if "nixl" not in transfer.forbid:
            transports.append(NixlTransport(layout, settings.net_device, rules.reads_at_once(NixlTransport.name)))
        if "grpc" not in transfer.forbid:
            rule = TicketRule(secret(settings.secret_env), settings.epoch, self._config.cache_config.block_size)
            limits = StreamLimits(transfer.frame_kib << 10, transfer.in_flight_mib << 20)
            server = BlockServer(layout, rule, limits, settings.listen_host, settings.advertise_host, channels)
            transports.append(GrpcTransport(layout, limits, server, channels))
        return tuple(transports)

    def _serve(self) -> None:
        for transport in self.transports:
            transport.progress()

    def _follow(self, orders: StepOrders) -> None:
        if orders.serve_s is not None:
            self._mover.serve_for(orders.serve_s)
        for job in orders.pulls:
            self._mover.pull(job)
        for follow in orders.follows:
            self._mover.follow(follow)
        self._mover.prompts_done(orders.prompts_done)
        for ticket in orders.releases if self._rank == 0 else ():
            self._mover.release(ticket)
