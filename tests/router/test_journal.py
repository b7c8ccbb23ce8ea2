"""The journal: bounded, complete, found again here or in the store, and the same after its bytes."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine import Leg, Sampling
from cluster.errors import StoreUnavailable
from protos.baton.v1 import admin_pb2 as pb
from protos.baton.v1.admin_pb2_grpc import AdminStub, add_AdminServicer_to_server
from router import decision
from router.admin_service import AdminService
from router.explainer import Explainer
from router.explanation import explanation_of
from router.fleet import Fleet
from router.generation import GenerationRequest
from router.journal import CANDIDATES, Journal
from router.journal_record import (
    Attempt,
    BadRecord,
    Candidate,
    Decision,
    RequestRecord,
    Rung,
    Timing,
    decoded,
    encoded,
)
from router.pipeline_questions import DEFAULT_PIPELINE_RULES
from router.request_journal import RequestJournal
from router.text_generation import TextGeneration
from tests.router.dispatch_parts import parts


class Kept:
    """What a journal sent away, and what it asks for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.away = False

    def send(self, request_id: str, body: bytes) -> None:
        self.bodies[request_id] = body

    async def recall(self, request_id: str) -> bytes | None:
        if self.away:
            raise StoreUnavailable("redis://x: no answer in 0.25 s")
        return self.bodies.get(request_id)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def journal(kept: Kept, most: int = 10) -> Journal:
    return Journal("router-1", most, kept.send, kept.recall)


def write(journal: Journal, request_id: str) -> None:
    record = journal.begin(request_id, "acme", 1_200, at_unix_s=1_700_000_000.0)
    record.predicted = Timing(ttft_s=0.25, itl_s=0.02)
    candidates = (
        Candidate("p2", {"queue": 0.0, "prefill": 0.2, "transfer": 0.05}),
        Candidate("p1", {"queue": 0.2, "prefill": 0.1, "transfer": 0.05}),
    )
    journal.decided(request_id, Decision("prefill", 0.001, "p2", "p1", candidates, because="lowest predicted TTFT"))
    journal.attempted(request_id, Attempt(f"{request_id}/p1", "prefill", "p2", 0.001, 0.21, "completed"))
    journal.stepped(request_id, Rung(f"{request_id}/d2", "nixl", "failed", 38, 9_000, "no route"))
    journal.end(request_id, "completed", Timing(ttft_s=0.27, itl_s=0.021))


def test_a_record_holds_the_reasons_the_attempts_and_what_happened(kept: Kept) -> None:
    book = journal(kept)
    write(book, "r1")
    record = book.find("r1")
    assert record is not None
    assert [(c.worker_id, round(c.total_s, 3)) for c in record.decisions[0].candidates] == [
        ("p2", 0.25),
        ("p1", 0.35),
    ]
    assert (record.predicted.ttft_s, record.actual.ttft_s) == (0.25, 0.27)
    assert record.attempts[0].worker_id == "p2"
    assert record.rungs[0].reason == "no route"
    assert decoded(kept.bodies["r1"]) == record


def test_a_running_request_can_be_looked_at(kept: Kept) -> None:
    book = journal(kept)
    book.begin("r1", "acme", 10, 0.0)
    record = book.find("r1")
    assert record is not None
    assert record.outcome == ""
    assert kept.bodies == {}


def test_only_the_newest_are_kept_here_and_the_store_is_asked_for_the_rest(kept: Kept) -> None:
    book = journal(kept, most=3)
    for n in range(10):
        write(book, f"r{n}")
    assert len(book) == 3
    assert book.find("r6") is None
    assert book.find("r7") is not None


async def test_a_request_of_another_router_is_found_in_the_store(kept: Kept) -> None:
    write(journal(kept), "r1")
    elsewhere = journal(kept)
    found = await elsewhere.look_up("r1")
    assert found is not None
    assert found.request_id == "r1"
    assert await elsewhere.look_up("never") is None


async def test_what_is_here_needs_no_store(kept: Kept) -> None:
    book = journal(kept)
    write(book, "r1")
    kept.away = True
    assert await book.look_up("r1") is not None
    with pytest.raises(StoreUnavailable):
        await book.look_up("r2")


async def test_a_damaged_record_says_so(kept: Kept) -> None:
    kept.bodies["r1"] = b"\xc1"
    with pytest.raises(BadRecord, match="cannot be read"):
        await journal(kept).look_up("r1")


def choice_among(workers: int, chosen: int) -> decision.Decision:
    """Worker n is predicted to cost n seconds."""
    names, costs = tuple(f"worker-{n}" for n in range(workers)), np.arange(workers, dtype=np.float64)
    table = decision.CostTable.of(Leg.PREFILL, names, np.arange(workers), np.zeros(workers), queue_s=costs)
    return decision.Decision(decision.Why.SESSION, table.candidate(chosen), table, chosen)


def test_the_chosen_worker_leads_those_that_are_kept_of_a_large_fleet(kept: Kept) -> None:
    book = journal(kept)
    written = RequestJournal(book, lambda: 0.0, lambda: 0.0)
    written.begin(GenerationRequest("r1", [1, 2, 3], Sampling(4)))
    written.decided("r1", choice_among(1_000, chosen=500), 0)
    record = book.find("r1")
    assert record is not None
    (made,) = record.decisions
    assert (made.chosen, made.runner_up, made.left_out) == ("worker-500", "worker-0", 1_000 - CANDIDATES)
    assert [c.worker_id for c in made.candidates] == ["worker-500", *(f"worker-{n}" for n in range(CANDIDATES - 1))]


def test_a_record_stays_small_however_much_befalls_its_request(kept: Kept) -> None:
    book = journal(kept)
    book.begin("r1", "acme", 10, 0.0)
    kept_of_each = tuple(Candidate(f"worker-{n}", {"queue": 1.0 + n, "prefill": 0.1}) for n in range(CANDIDATES))
    for _ in range(100):
        book.decided("r1", Decision("prefill", 0.0, "worker-0", "worker-1", kept_of_each, because="x" * 10_000))
        book.attempted("r1", Attempt("a", "prefill", "w", 0.0, 0.0, "failed"))
        book.stepped("r1", Rung("a", "nixl", "failed"))
    book.end("r1", "failed", Timing(), error="y" * 10_000)
    assert len(kept.bodies["r1"]) < 100_000


def test_what_comes_too_late_changes_nothing(kept: Kept) -> None:
    book = journal(kept)
    write(book, "r1")
    before = kept.bodies["r1"]
    book.attempted("r1", Attempt("a", "decode", "w", 0.0, 0.0, "late"))
    book.end("r1", "failed", Timing())
    book.end("never begun", "failed", Timing())
    assert kept.bodies == {"r1": before}


TEXT = st.text(max_size=20)
SECONDS = st.floats(0, 1e6)
RECORDS = st.builds(
    RequestRecord,
    request_id=TEXT,
    router_id=TEXT,
    at_unix_s=SECONDS,
    tenant=TEXT,
    prompt_tokens=st.integers(0, 10**6),
    cached_tokens_actual=st.none() | st.integers(0, 10**6),
    predicted=st.builds(Timing, st.none() | SECONDS, st.none() | SECONDS),
    decisions=st.lists(
        st.builds(
            Decision,
            question=TEXT,
            at_s=SECONDS,
            chosen=TEXT,
            candidates=st.lists(st.builds(Candidate, TEXT, st.dictionaries(TEXT, SECONDS)), max_size=3).map(tuple),
        ),
        max_size=3,
    ),
    attempts=st.lists(st.builds(Attempt, TEXT, TEXT, TEXT, SECONDS, SECONDS, TEXT, TEXT), max_size=3),
    rungs=st.lists(st.builds(Rung, TEXT, TEXT, TEXT, st.integers(0, 10**9)), max_size=3),
)


@given(RECORDS)
def test_a_record_is_the_same_after_its_bytes_and_whole_in_the_explanation(record: RequestRecord) -> None:
    assert decoded(encoded(record)) == record
    told = pb.Explanation.FromString(explanation_of(record).SerializeToString())
    assert told.HasField("cached_tokens_actual") is (record.cached_tokens_actual is not None)
    assert told.predicted.HasField("ttft_s") is (record.predicted.ttft_s is not None)
    assert [d.chosen for d in told.decisions] == [d.chosen for d in record.decisions]
    assert [len(d.candidates) for d in told.decisions] == [len(d.candidates) for d in record.decisions]
    assert [a.attempt_id for a in told.attempts] == [a.attempt_id for a in record.attempts]
    assert [r.blocks for r in told.rungs] == [r.blocks for r in record.rungs]
    assert not explanation_of(record, dry_run=True).HasField("arrived_unix_s")


def explainer_of(book: Journal) -> Explainer:
    """Of records only: it has no frontend."""
    text: TextGeneration = None  # type: ignore[assignment]
    return Explainer("router-1", book, text, parts(lambda: 0.0).placing, lambda: 0.0, DEFAULT_PIPELINE_RULES)


async def explain(book: Journal | None, request: pb.ExplainRequest) -> pb.Explanation:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    fleet: Fleet = None  # type: ignore[assignment] # Explain does not ask it
    explainer = None if book is None else explainer_of(book)
    add_AdminServicer_to_server(AdminService(fleet, "router-1", "demo", explainer), server)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer: pb.Explanation = await AdminStub(channel).Explain(request, timeout=10)
            return answer
    finally:
        await server.stop(None)


async def test_explain_answers_by_request_id(kept: Kept) -> None:
    book = journal(kept)
    write(book, "r1")
    told = await explain(book, pb.ExplainRequest(request_id="r1"))
    assert told.decisions[0].runner_up == "p1"
    assert [(term.name, term.seconds) for term in told.decisions[0].candidates[1].terms] == [
        ("queue", 0.2),
        ("prefill", 0.1),
        ("transfer", 0.05),
    ]
    assert told.arrived_unix_s == 1_700_000_000.0


@pytest.mark.parametrize(
    ("request_id", "away", "code"),
    [
        ("unknown", False, grpc.StatusCode.NOT_FOUND),
        ("", False, grpc.StatusCode.INVALID_ARGUMENT),
        ("unknown", True, grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_explain_says_why_it_cannot(kept: Kept, request_id: str, away: bool, code: grpc.StatusCode) -> None:
    kept.away = away
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await explain(journal(kept), pb.ExplainRequest(request_id=request_id))
    assert refused.value.code() is code


async def test_explain_without_a_journal_is_not_there() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await explain(None, pb.ExplainRequest(request_id="r"))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
