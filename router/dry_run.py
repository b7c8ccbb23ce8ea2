"""Where a request would go now, and why, without sending it: the same choices, written into a record of their own.

Changes nothing: what is chosen is not reserved. What it costs to be admitted is not asked.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.engine import Leg, Role
from cluster.errors import NoWorker
from router.generation import GenerationRequest
from router.journal import Journal
from router.journal_record import RequestRecord
from router.pipeline_questions import PipelineRules
from router.placing import Placing
from router.request_choices import RequestChoices
from router.request_journal import RequestJournal
from router.rungs import first_rungs

_NOBODY: frozenset[str] = frozenset()


def dry_run(
    request: GenerationRequest, placing: Placing, now: Callable[[], float], rules: PipelineRules, router_id: str
) -> RequestRecord:
    """Raises `NoWorker` when nobody could take it."""
    choices = placing.choices(request)
    journal = Journal(router_id, 1, lambda *_: None, _nowhere)
    written = RequestJournal(journal, now, lambda: 0.0, rules.first_token_from_prefill)
    written.begin(request)
    output_tokens = placing.placement.output_tokens(choices.demand)
    for leg, worker_id in _way(request, choices, rules.recovery.prefill_may_decode):
        written.decided(request.request_id, choices.made(leg, worker_id), output_tokens)
    record = journal.find(request.client_id or request.request_id)
    assert record is not None
    return record


def _way(request: GenerationRequest, choices: RequestChoices, prefill_may_decode: bool) -> list[tuple[Leg, str]]:
    """The legs of a request that nothing befalls, in their order, as its pipeline would try them."""
    for leg, role in first_rungs(request, lambda: choices.whole_pays(_NOBODY), prefill_may_decode):
        worker_id = choices.choose(leg, role, _NOBODY, None)
        if worker_id is not None:
            then = choices.choose(Leg.DECODE, Role.DECODE, _NOBODY, None) if leg is Leg.PREFILL else None
            return [(leg, worker_id)] + ([] if then is None else [(Leg.DECODE, then)])
    raise NoWorker("no worker is ready to take the request: try again in a moment")


async def _nowhere(request_id: str) -> bytes | None:
    return None
