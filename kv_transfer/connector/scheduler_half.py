"""The half of the connector that lives beside vLLM's scheduler and block pool: leases out, tickets in, KvSource.

Every method is called on the engine's own thread, inside its loop and without a guard: an exception here ends the
engine, so what a peer or a client sends wrong is answered, never raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus

from cluster.config import secret
from cluster.engine import PrefillInProgress
from cluster.errors import ConfigError
from cluster.kv_link import KvStats
from kv_transfer.announcement import Announcement, announce
from kv_transfer.connector.exporter import Exporter
from kv_transfer.connector.grower import Grower
from kv_transfer.connector.importer import Importer
from kv_transfer.connector.messages import RankEndpoint, StepOrders, StepReport
from kv_transfer.connector.prefetcher import Prefetcher
from kv_transfer.engine_settings import ConnectorSettings
from kv_transfer.growing_exports import GrowingExports
from kv_transfer.lease import LeaseTable
from kv_transfer.lease_book import LeaseBook
from kv_transfer.source_server import KvSource, KvSourceServer
from kv_transfer.ticket_writer import TicketWriter

_EXPORTABLE = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)


class SchedulerHalf:
    def __init__(self, config: VllmConfig, settings: ConnectorSettings) -> None:
        self._settings = settings
        self._secret = secret(settings.secret_env)
        self._block_size = config.cache_config.block_size
        table = LeaseTable(settings.epoch, settings.lease_s, config.parallel_config.tensor_parallel_size)
        self._book = LeaseBook(table, time.monotonic)
        self._importer = Importer(self._secret, self._block_size)
        # A waiting request must still claim its own lease in time.
        self._prefetcher = Prefetcher(self._block_size, settings.lease_s / 2)
        self._pool: Any
        self._exporter: Exporter
        self._grower: Grower
        self._growing: GrowingExports
        self._writer: TicketWriter
        self._step = 0
        self._server = KvSourceServer(settings.listen_host, settings.advertise_host, settings.channels())
        self._exporting: set[str] = set()
        self._serving = False

    def bind_pool(self, pool: Any) -> None:
        self._pool = pool

    def start(self, endpoints: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """All ranks have their KV cache: serve peers, and tell the owner where."""
        ranks = [endpoints[rank] for rank in sorted(endpoints)]
        assert all(isinstance(rank, RankEndpoint) for rank in ranks)
        if len({rank.fingerprint for rank in ranks}) != 1:
            raise ConfigError("the ranks of this engine lay out their KV blocks differently")
        fingerprint = ranks[0].fingerprint
        self._prepare_exports(fingerprint.digest)
        epoch, places = self._settings.epoch, tuple(rank.endpoint for rank in ranks)
        self._server.start(KvSource(self._book, epoch, fingerprint, places, self.stats, self._growing))
        announce(Path(self._settings.announce_path), Announcement(self._server.address, fingerprint.digest))

    def new_request(self, request: Any) -> None:
        self._exporter.take_back()
        match request.kv_transfer_params:
            case {"export": True}:
                self._exporting.add(request.request_id)
                if self._is_followed(request):
                    self._grower.begin(request)
            case {"ticket": sealed, **rest}:
                self._importer.begin(request, sealed if isinstance(sealed, bytes) else b"")
                self._prefetcher.await_prefetch(request.request_id, str(rest.get("after", "")))
            case {"follow": (str(source), int(epoch), str(attempt_id))}:
                self._prefetcher.begin(request, PrefillInProgress(source, epoch, attempt_id))

    def matched_tokens(self, request: Any, local_tokens: int) -> tuple[int | None, bool]:
        """None: the scheduler is to ask again later."""
        self._exporter.take_back()
        if request.request_id in self._prefetcher:
            missing = self._prefetcher.missing_tokens(request, local_tokens)
        elif self._prefetcher.must_wait(request.request_id):
            missing = None
        else:
            missing = self._importer.missing_tokens(request, local_tokens)
        return missing, bool(missing)

    def allocated(self, request: Any, block_ids: list[int], external_tokens: int) -> None:
        reader = self._prefetcher if request.request_id in self._prefetcher else self._importer
        reader.allocated(request.request_id, block_ids, external_tokens)

    def step_orders(self, tokens: Mapping[str, int], blocks_of: Callable[[str], tuple[list[int], ...]]) -> StepOrders:
        """For the step in which so many tokens of each request are computed."""
        self._exporter.take_back()
        self._step += 1
        step = self._step if self._grower.scheduled(self._step, tokens, blocks_of) else 0
        jobs, releases = self._importer.take_orders()
        follows, prompts_done = self._prefetcher.take_orders()
        return StepOrders(jobs, releases, self._serve_s(), follows, prompts_done, step)

    def step_done(self, output: KVConnectorOutput) -> None:
        if isinstance(report := output.kv_connector_worker_meta, StepReport):
            for rank, result in report.results:
                self._importer.ended(rank, result)
            if report.step:
                self._grower.ran(report.step)
        # The scheduler asserts that it knows every id that it is told; one that it does not would end the engine.
        received, failed = output.finished_recving or set(), output.failed_recving
        known = self._importer.received(received, failed) | self._prefetcher.received(received, failed)
        output.finished_recving = known
        output.failed_recving &= output.finished_recving

    def finished(self, request: Any, block_ids: tuple[list[int], ...]) -> dict[str, Any] | None:
        """The parameters that go out with the request's last output."""
        rungs = self._importer.finish(request.request_id)
        self._prefetcher.finish(request.request_id)
        self._grower.over(request.request_id)
        if request.request_id not in self._exporting:
            return {"rungs": [astuple(rung) for rung in rungs]} if rungs else None
        self._exporting.remove(request.request_id)
        if request.status not in _EXPORTABLE:
            return None
        ticket = self._exporter.export(request, block_ids[0], self._writer)
        return {"ticket": ticket} if ticket else None

    @property
    def has_work(self) -> bool:
        """Whether the engine should step although no request needs it."""
        return self._book.frees_wait or self._importer.has_orders or self._prefetcher.has_orders

    def stats(self) -> KvStats:
        """On any thread."""
        return self._book.stats(self._importer.counts.transfers, self._importer.recomputed_requests)

    def check_idle(self) -> None:
        """AssertionError: something is left of requests or leases that have ended."""
        self._exporter.check_integrity()
        self._importer.check_idle()
        self._prefetcher.check_idle()
        self._grower.check_idle()

    def close(self) -> None:
        self._server.close()

    def _prepare_exports(self, fingerprint: bytes) -> None:
        settings = self._settings
        self._writer = TicketWriter(
            worker_id=settings.worker_id,
            epoch=settings.epoch,
            source=self._server.address,
            fingerprint=fingerprint,
            secret=self._secret,
            lease_s=settings.lease_s,
        )
        self._growing = GrowingExports(self._book, self._writer, self._block_size)
        self._grower = Grower(self._growing, self._pool, self._block_size)
        self._exporter = Exporter(self._book, self._pool, self._block_size, self._growing.forget)

    def _is_followed(self, request: Any) -> bool:
        """By the same rule the router decides whether somebody follows."""
        transfer = self._settings.transfer
        return transfer.chunk_pipelining and request.num_prompt_tokens >= transfer.pipelining_least_tokens

    def _serve_s(self) -> float | None:
        """Readers connect while a lease is open, when an idle engine takes no steps that could carry orders: so serving
        begins with the prefill, and lasts for the lease and one renewal; and then for a probe that a reader may have
        begun meanwhile."""
        serving = bool(self._exporting) or self._book.live > 0
        if not serving and not self._serving:
            return None
        self._serving = serving
        return 2 * (self._settings.lease_s if serving else self._settings.transfer.probe_s)
