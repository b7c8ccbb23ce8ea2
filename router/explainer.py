"""Answers why a request went where it went, from the journal; and where a prompt would go now, by trying the choices.

Owns neither: records are the journal's, choices are placement's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from cluster.engine import Sampling
from cluster.errors import InvalidRequest
from protos.baton.v1 import admin_pb2
from router.caller import PRIORITY_HEADER, TENANT_HEADER, caller_of
from router.dry_run import dry_run
from router.explanation import explanation_of
from router.generation import GenerationRequest
from router.grpc_messages import prompt_of
from router.guard import Guard
from router.journal import Journal
from router.pipeline_questions import PipelineRules
from router.placing import Placing
from router.session_id import checked_session
from router.text_generation import TextGeneration, TextSampling
from router.trace_answer import trace_of


class Explainer:
    """`now`: the clock that placement uses. `guard` says which prefixes a tenant shares."""

    def __init__(
        self,
        router_id: str,
        journal: Journal,
        text: TextGeneration,
        placing: Placing,
        now: Callable[[], float],
        rules: PipelineRules,
        guard: Guard | None = None,
    ) -> None:
        self._router_id = router_id
        self._journal = journal
        self._text = text
        self._placing = placing
        self._now = now
        self._rules = rules
        self._guard = guard or Guard()

    async def recorded(self, request_id: str) -> admin_pb2.Explanation | None:
        """None: it is in no journal. Raises `InvalidRequest`, `StoreUnavailable`, `BadRecord`."""
        if not request_id:
            raise InvalidRequest("name the request: set request_id")
        record = await self._journal.look_up(request_id)
        return None if record is None else explanation_of(record)

    async def traced(self, request_id: str) -> admin_pb2.RequestTrace | None:
        """None: it is in no journal. Raises `InvalidRequest`, `StoreUnavailable`, `BadRecord`."""
        if not request_id:
            raise InvalidRequest("name the request: set request_id")
        record = await self._journal.look_up(request_id)
        return None if record is None else trace_of(record)

    async def tried(self, asked: admin_pb2.DryRun) -> admin_pb2.Explanation:
        """Raises what a request with this prompt would be refused with."""
        said = caller_of((name, value) for name, value in _names(asked) if value)
        caller = self._guard.named(said.tenant, said.priority)
        session_id = checked_session(asked.session_id)
        sampling = TextSampling(max_tokens=asked.max_tokens or None)
        rendered = await self._text.render("", prompt_of(asked), sampling)
        request = GenerationRequest(
            request_id=f"dry-{secrets.token_hex(4)}",
            prompt_token_ids=rendered.token_ids,
            sampling=Sampling(rendered.max_tokens),
            cache_salt=caller.salted(""),
            session_id=session_id,
            caller=caller,
        )
        record = dry_run(request, self._placing, self._now, self._rules, self._router_id)
        return explanation_of(record, dry_run=True)


def _names(asked: admin_pb2.DryRun) -> tuple[tuple[str, str], ...]:
    return (TENANT_HEADER, asked.tenant), (PRIORITY_HEADER, asked.priority)
