"""What a router's requests leave in its metrics, through the journal, and the page that Prometheus reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import metrics_table as table
from cluster.clock import RealClock, VirtualClock
from cluster.config import RouterConfig
from cluster.engine import EngineOutput, EngineRequest, Leg, Role, Sampling, TransferRung
from cluster.errors import (
    BatonError,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    NoWorker,
    Overloaded,
    StoreUnavailable,
    TenantLimited,
)
from cluster.membership import WorkerRecord
from cluster.metrics import Buckets, Sample
from protos.baton.v1 import admin_pb2, worker_pb2
from router.actions import Settle
from router.dispatch import DispatchParts
from router.fleet import Fleet
from router.fleet_reports import WorkerReport
from router.generation import Emission, GenerationRequest, Outcome
from router.journal_record import Attempt, RequestRecord
from router.metrics_page import MetricsPage, page_of
from router.request_counts import RequestCounts
from router.request_journal import RequestJournal
from router.request_metrics import FirstToken, RequestMetrics
from router.router_metrics import RouterMetrics
from tests.router.dispatch_parts import new_journal, parts
from tests.router.simulated_cluster import Clients, SimulatedCluster, engine_config

ME = "router-1"


def told(samples: list[Sample]) -> dict[tuple[str, ...], float | Buckets]:
    return {(sample.metric.name, *sample.labels): sample.value for sample in samples}


def count(samples: list[Sample], *key: str) -> int:
    buckets = told(samples)[key]
    assert isinstance(buckets, Buckets)
    return buckets.count


class Observed:
    """A router over two simulated workers, with its metrics."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.requests = RequestMetrics(ME)
        clock, made = RealClock(), parts(RealClock().now)
        journal = RequestJournal(new_journal(), clock.now, lambda: 1_700_000_000.0, metrics=self.requests)
        self.fleet = Fleet(
            RouterConfig(), cluster.directory, clock, ME, 1, DispatchParts(made.placing, journal, made.rules)
        )
        self.clients = Clients(self.fleet.dispatch, "c")
        self.metrics = RouterMetrics(
            ME, self.fleet.dispatch, self.requests, admin_pb2.StoreStatus, lambda: 2, sizes=lambda: {Role.DECODE: 3}
        )
        self.page = MetricsPage(self.metrics.samples, self.fleet.describe)

    async def ready(self) -> None:
        async with asyncio.timeout(10):
            while not (self.fleet.dispatch.view.ready(Role.PREFILL) and self.fleet.dispatch.view.ready(Role.DECODE)):
                await self.fleet.next_change.wait()


@pytest.fixture
async def observed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Observed]:
    monkeypatch.setenv("BATON_TICKET_SECRET", "a secret that only the tests know")
    cluster = SimulatedCluster(engine_config(step_s=0.0, prefill_token_s=0.0, transfer_block_s=0.0))
    made = Observed(cluster)
    await cluster.add("p1", Role.PREFILL)
    await cluster.add("d1", Role.DECODE)
    await made.fleet.start()
    await made.ready()
    yield made
    await made.fleet.close()
    await cluster.close()


async def test_the_numbers_are_those_of_the_status_and_of_the_answers(observed: Observed) -> None:
    for _ in range(3):
        await observed.clients.ask(list(range(1, 65)), 5)
    samples, status = list(observed.metrics.samples()), observed.fleet.dispatch.counters()
    values = told(samples)
    assert values["baton_requests_total", ME, "completed"] == status.requests_by_outcome["completed"] == 3
    assert values["baton_requests_placed_total", ME, "disaggregated"] == status.disaggregated == 3
    assert (values["baton_prompt_tokens_total", ME], values["baton_output_tokens_total", ME]) == (192.0, 15.0)
    assert values["baton_drains", ME] == 2.0
    assert values["baton_pool_size", ME, "decode"] == 3.0
    assert values["baton_router_workers", ME, "decode", "ready"] == 1.0
    for stage in ("ttft", "queue", "placement", "prefill", "request", "ttft_predicted"):
        assert count(samples, f"baton_{stage}_seconds", ME) == 3, stage
    assert count(samples, "baton_itl_seconds", ME) == 12
    assert count(samples, "baton_transfer_seconds", ME, "simulated", "landed") == 1
    assert count(samples, "baton_handshake_seconds", ME, "simulated") == 1


async def test_the_page_is_what_prometheus_reads_and_has_every_worker(observed: Observed) -> None:
    await observed.clients.ask(list(range(1, 65)), 5)
    page = (await observed.page()).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert families["baton_ttft_seconds"].type == "histogram"
    assert families["baton_requests"].type == "counter"
    up = families["baton_worker_up"]
    assert {(each.labels["pool"], each.labels["worker"], each.value) for each in up.samples} == {
        ("prefill", "p1", 1.0),
        ("decode", "d1", 1.0),
    }
    buckets = [each for each in families["baton_ttft_seconds"].samples if each.name.endswith("_bucket")]
    assert [each.value for each in buckets] == sorted(each.value for each in buckets)
    assert buckets[-1].labels["le"] == "+Inf"
    for family in families.values():
        declared = table.METRICS[family.name + ("_total" if family.type == "counter" else "")]
        assert family.documentation == declared.help
        assert all(set(each.labels) - {"le"} == set(declared.labels) for each in family.samples)


async def test_who_asks_while_the_page_is_written_gets_the_same_one() -> None:
    asked, answer = 0, asyncio.Event()

    async def describe() -> list[WorkerReport]:
        nonlocal asked
        asked += 1
        await answer.wait()
        return []

    page = MetricsPage(list, describe)
    waiting = [asyncio.create_task(page()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    answer.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert asked == 1
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [b""] * 4
    await page()
    assert asked == 2


@pytest.mark.parametrize("last_word", [None, worker_pb2.WorkerDescription(worker_id="d1")])
async def test_of_a_silent_worker_nothing_is_said_but_that(last_word: worker_pb2.WorkerDescription | None) -> None:
    record = WorkerRecord("d1", Role.DECODE, 7, "127.0.0.1:1")

    async def describe() -> list[WorkerReport]:
        return [WorkerReport(record, last_word, "no answer", age_s=9.0)]

    lines = (await MetricsPage(list, describe)()).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ['baton_worker_up{pool="decode",worker="d1"} 0.0']


def test_series_that_may_stay_empty_are_there_from_the_start() -> None:
    fleet_counts = told(list(RequestMetrics(ME).samples()))
    assert fleet_counts["baton_recovered_requests_total", ME, "failed"] == 0.0
    assert fleet_counts["baton_prefix_reused_tokens_total", ME] == 0.0
    assert ("baton_itl_seconds", ME) in fleet_counts


def test_prefix_counters_are_of_requests_whose_worker_said_what_it_found() -> None:
    metrics = RequestMetrics(ME)
    record = RequestRecord("r1", ME, 0.0, "acme", 100, cached_tokens_predicted=64, cached_tokens_actual=32)
    record.outcome, record.output_tokens = "completed", 7
    metrics.ended(record, most_cached=96)
    metrics.ended(RequestRecord("r2", ME, 0.0, "acme", 500, outcome="refused"), most_cached=None)
    left = RequestRecord("r3", ME, 0.0, "acme", 50, cached_tokens_predicted=48, outcome="cancelled")
    metrics.ended(left, most_cached=48)
    values = told(list(metrics.samples()))
    assert [values[f"baton_prefix_{what}_tokens_total", ME] for what in ("predicted", "selected", "reused")] == [
        96.0,
        64.0,
        32.0,
    ]
    assert values["baton_prompt_tokens_total", ME] == 150.0


def test_a_request_that_left_an_attempt_counts_by_how_it_ended() -> None:
    metrics = RequestMetrics(ME)
    for outcome, endings in (("completed", ["lost", "completed"]), ("failed", ["late"]), ("completed", ["completed"])):
        attempts = [Attempt("a", "whole", "w", 0.0, 0.1, ending) for ending in endings]
        prefetch = Attempt("b", "prefetch", "w", 0.0, 0.1, "failed")  # changes nothing for the request
        metrics.ended(RequestRecord("r", ME, 0.0, "t", 1, attempts=[*attempts, prefetch], outcome=outcome), 0)
    values = told(list(metrics.samples()))
    assert values["baton_recovered_requests_total", ME, "completed"] == 1.0
    assert values["baton_recovered_requests_total", ME, "failed"] == 1.0


def test_predictions_are_compared_without_the_wait_for_admission() -> None:
    metrics = RequestMetrics(ME)
    metrics.first_token(FirstToken(ttft_s=3.0, queued_s=1.0, placement_s=0.0, prefill_s=2.0, predicted_s=2.0))
    metrics.first_token(FirstToken(ttft_s=3.0, queued_s=1.0, placement_s=0.0, prefill_s=2.0, predicted_s=None))
    ratio = told(list(metrics.samples()))["baton_ttft_prediction_ratio", ME]
    assert isinstance(ratio, Buckets)
    assert (ratio.count, ratio.total) == (1, 1.0)


def test_a_rung_that_tried_nothing_has_no_time() -> None:
    metrics = RequestMetrics(ME)
    metrics.rung(TransferRung("local", "landed"))
    metrics.rung(TransferRung("nixl", "failed", began_unix_s=1.0, seconds=0.5, handshake_s=0.2))
    samples = list(metrics.samples())
    assert count(samples, "baton_transfer_seconds", ME, "nixl", "failed") == 1
    assert not any("local" in sample.labels for sample in samples)


def test_text_in_a_label_cannot_break_the_page() -> None:
    odd = 'a"b\\c\nd'
    page = page_of([Sample(table.WORKER_UP, ("decode", odd), 1.0)]).decode()
    (family,) = text_string_to_metric_families(page)
    assert family.samples[0].labels["worker"] == odd


def test_a_prompt_whose_blocks_did_not_come_is_timed_from_its_last_rung_to_its_first_token() -> None:
    metrics, clock = RequestMetrics(ME), VirtualClock()
    journal = RequestJournal(new_journal(), clock.now, lambda: 1_000.0 + clock.now(), metrics=metrics)
    asyncio.run(_failed_pull(journal, clock))
    recompute = told(list(metrics.samples()))["baton_recompute_seconds", ME]
    assert isinstance(recompute, Buckets)
    assert recompute.count == 1
    assert recompute.total == pytest.approx(2.0)


async def _failed_pull(journal: RequestJournal, clock: VirtualClock) -> None:
    """Sent at 1 s, its only rung fails from 2 to 3 s, its first token comes at 5 s."""
    request = GenerationRequest("r1", [1, 2, 3], Sampling(4))
    journal.begin(request)
    await clock.advance(1.0)
    journal.submitted("r1", EngineRequest("r1/decode1", Leg.DECODE, [1, 2, 3], Sampling(4)))
    await clock.advance(4.0)
    journal.emitted(Emission("r1", [7]))
    rung = TransferRung("nixl", "failed", began_unix_s=1_002.0, seconds=1.0)
    journal.moved("r1", EngineOutput("r1/decode1", [8], rungs=(rung,)))
    journal.settled("r1", Settle("d1", "r1/decode1", Leg.DECODE))
    journal.end("r1", Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Overloaded("full"), "queue_full"),
        (DeadlineUnreachable("too late", 1.0), "deadline"),
        (DeadlineExceeded("too late"), "deadline"),
        (TenantLimited("yours", 1.0), "tenant_limit"),
        (NoWorker("nobody"), "no_worker"),
        (StoreUnavailable("away"), "store"),
        (InvalidRequest("not yours"), "not_allowed"),
    ],
)
def test_a_refusal_counts_by_its_reason(error: BatonError, reason: str) -> None:
    counts = RequestCounts()
    counts.refused(error)
    assert (dict(counts.refusals), counts.outcomes["refused"]) == ({reason: 1}, 1)
    assert reason in table.LABEL_VALUES["reason"]
