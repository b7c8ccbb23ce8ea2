"""Requests of this router's journal as the answer of `Admin.ListRequests`: those that run, then those that ended, each
newest first.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

from protos.baton.v1 import admin_pb2 as pb
from router.journal import Journal
from router.journal_record import RequestRecord

USUAL = 100
RUNNING = "running"
_AT_ONCE = 64  # records are read between requests, not before them


class RequestListing:
    """`wall`: seconds since 1970."""

    def __init__(self, journal: Journal, wall: Callable[[], float]) -> None:
        self._journal = journal
        self._wall = wall

    async def find(self, asked: pb.ListRequestsRequest) -> list[pb.RequestSummary]:
        """At most `limit` of them. Raises `BadRecord`."""
        limit = asked.limit or USUAL
        found: list[pb.RequestSummary] = []
        for number, record in enumerate(self._records(asked.state)):
            if len(found) == limit:
                break
            summary = self._summary(record)
            if _wanted(asked, summary):
                found.append(summary)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        return found

    def _records(self, state: str) -> Iterator[RequestRecord]:
        running = self._journal.running() if state in ("", RUNNING) else ()
        ended = self._journal.ended() if state != RUNNING else ()
        return itertools.chain(running, ended)

    def _summary(self, record: RequestRecord) -> pb.RequestSummary:
        prefill, decode = _places(record)
        runs = not record.outcome
        return pb.RequestSummary(
            request_id=record.request_id,
            tenant=record.tenant,
            priority=record.priority,
            session_id=record.session_id,
            state=record.outcome or RUNNING,
            arrived_unix_s=record.at_unix_s,
            duration_s=max(0.0, self._wall() - record.at_unix_s) if runs else record.duration_s,
            queued_s=record.queued_s,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens_actual,
            output_tokens=record.output_tokens,
            actual=pb.Timing(ttft_s=record.actual.ttft_s, itl_s=record.actual.itl_s),
            prefill_worker=prefill,
            decode_worker=decode,
            attempts=len(record.attempts),
            error=record.error,
        )


def _places(record: RequestRecord) -> tuple[str, str]:
    """The workers that were chosen last for its prompt and for its output; empty where none was yet."""
    chosen = {decision.question: decision.chosen for decision in record.decisions}
    questions = [decision.question for decision in record.decisions if decision.question != "disaggregate"]
    if questions and questions[-1] == "whole":
        return chosen["whole"], chosen["whole"]
    return chosen.get("prefill", ""), chosen.get("decode", "")


def _wanted(asked: pb.ListRequestsRequest, summary: pb.RequestSummary) -> bool:
    if asked.state and summary.state != asked.state:
        return False
    if asked.tenant and summary.tenant != asked.tenant:
        return False
    return not asked.worker_id or asked.worker_id in (summary.prefill_worker, summary.decode_worker)
