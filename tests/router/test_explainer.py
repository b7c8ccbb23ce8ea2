"""A dry run: the choices a request would meet now, with their reasons, and nothing changed by asking."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from cluster.block_hashes import chain_seed, extend_chain
from cluster.engine import Role
from cluster.errors import InvalidRequest, NoWorker
from cluster.wire import role_to_wire
from protos.baton.v1 import admin_pb2, inference_pb2, worker_pb2
from router.explainer import Explainer
from router.pipeline_questions import DEFAULT_PIPELINE_RULES, PipelineRules
from router.placing import Placing
from router.recovery import RecoveryRules
from router.text_generation import Prompt, Rendered, TextChunk, TextSampling, TokenPrompt
from tests.router.dispatch_parts import BLOCK_TOKENS, MODEL, new_journal, parts

PROMPT = list(range(1_000, 1_000 + 20 * BLOCK_TOKENS))


class Tokens:
    """A frontend that takes token prompts only."""

    model, max_model_len = MODEL, 4096

    async def render(self, model: str, prompt: Prompt, sampling: TextSampling) -> Rendered:
        assert isinstance(prompt, TokenPrompt)
        return Rendered(prompt.token_ids, sampling.max_tokens or 16)

    def generate(
        self, model: str, prompt: Prompt, sampling: TextSampling, request_id: str
    ) -> AsyncGenerator[TextChunk, None]:
        raise AssertionError("a dry run generates nothing")


def fleet(*workers: str, rules: PipelineRules = DEFAULT_PIPELINE_RULES, **placement: Any) -> tuple[Explainer, Placing]:
    placing = parts(lambda: 0.0, **placement).placing
    for worker_id in workers:
        role = role_to_wire(Role.PREFILL if worker_id.startswith("p") else Role.DECODE)
        placing.worker_up(worker_pb2.WorkerDescription(worker_id=worker_id, role=role, num_blocks=1_000))
    return Explainer("router-1", new_journal(), Tokens(), placing, lambda: 0.0, rules), placing


def asked(**fields: Any) -> admin_pb2.DryRun:
    return admin_pb2.DryRun(tokens=inference_pb2.TokenPrompt(ids=PROMPT), **fields)


async def test_a_dry_run_names_both_legs_with_their_candidates_and_no_arrival() -> None:
    explainer, placing = fleet("p1", "p2", "d1", "d2")
    names = extend_chain(chain_seed(MODEL, "", ""), PROMPT, BLOCK_TOKENS)
    placing.placement.index.blocks_stored("p2", names)
    told = await explainer.tried(asked(session_id="talk", tenant="acme"))
    assert [decision.question for decision in told.decisions] == ["prefill", "decode"]
    assert (told.decisions[0].chosen, told.decisions[0].runner_up) == ("p2", "p1")
    assert told.cached_tokens_predicted == len(PROMPT) - BLOCK_TOKENS
    assert told.predicted.ttft_s > 0
    assert (told.session_id, told.tenant, told.outcome, len(told.attempts)) == ("talk", "acme", "", 0)
    assert not told.HasField("arrived_unix_s")


async def test_asking_reserves_nothing_and_expects_nothing() -> None:
    explainer, placing = fleet("p1", "d1")
    for _ in range(3):
        told = await explainer.tried(asked(session_id="talk"))
        assert told.cached_tokens_predicted == 0
    placing.check_integrity(())
    assert placing.placement.pins.get("talk", Role.PREFILL, 0.0) is None


@pytest.mark.parametrize(("workers", "questions"), [(("p1",), ["whole"]), (("d1",), ["whole"])])
async def test_with_one_pool_the_whole_request_would_run_there(workers: tuple[str, ...], questions: list[str]) -> None:
    explainer, _ = fleet(*workers)
    told = await explainer.tried(asked())
    assert [decision.question for decision in told.decisions] == questions


async def test_where_prefill_workers_may_not_decode_a_dry_run_sends_nothing_to_them_alone() -> None:
    rules = PipelineRules(recovery=RecoveryRules(prefill_may_decode=False))
    explainer, _ = fleet("p1", rules=rules)
    with pytest.raises(NoWorker):
        await explainer.tried(asked())
    told = await explainer.tried(asked(max_tokens=1))
    assert [(decision.question, decision.chosen) for decision in told.decisions] == [("whole", "p1")]


async def test_a_dry_run_is_refused_as_the_request_would_be() -> None:
    explainer, _ = fleet()
    with pytest.raises(NoWorker):
        await explainer.tried(asked())
    with pytest.raises(InvalidRequest, match="x-session-id"):
        await explainer.tried(asked(session_id="\n"))
    with pytest.raises(InvalidRequest, match="x-tenant-id"):
        await explainer.tried(asked(tenant="no such name!"))
    with pytest.raises(InvalidRequest, match="empty"):
        await explainer.tried(admin_pb2.DryRun())
