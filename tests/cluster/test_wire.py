"""Our types over worker.proto and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    Leg,
    PrefillInProgress,
    PromptOrigin,
    Role,
    Sampling,
    TokenLogprobs,
    TransferCount,
)
from cluster.errors import InvalidRequest
from cluster.wire import (
    describe_engine,
    output_from_wire,
    output_to_wire,
    request_from_wire,
    request_to_wire,
    role_from_wire,
    role_to_wire,
)
from protos.baton.v1 import worker_pb2 as pb

FOLLOW = pb.PrefillInProgress(source="h:1", epoch=1, attempt_id="b")

uint32 = st.integers(0, 2**32 - 1)
float32 = st.floats(allow_nan=False, width=32)
samplings = st.builds(
    Sampling,
    max_tokens=uint32,
    ignore_eos=st.booleans(),
    stop_token_ids=st.lists(uint32, max_size=3).map(tuple),
    logprobs=st.none() | uint32,
)

follows = st.builds(
    PrefillInProgress, source=st.text(min_size=1), epoch=st.integers(0, 2**64 - 1), attempt_id=st.text(min_size=1)
)


@st.composite
def requests(draw: st.DrawFn) -> EngineRequest:
    leg = draw(st.sampled_from(Leg))
    return EngineRequest(
        attempt_id=draw(st.text(min_size=1)),
        leg=leg,
        prompt_token_ids=draw(st.lists(uint32, min_size=1, max_size=5)),
        sampling=draw(samplings),
        engine_params=draw(st.binary()),
        ticket=draw(st.binary(min_size=1)) if leg is Leg.DECODE else b"",
        cache_salt=draw(st.text()),
        priority=draw(st.integers(-(2**31), 2**31 - 1)),
        trace_headers=draw(st.dictionaries(st.text(), st.text(), max_size=2)),
        follow=draw(follows) if leg is Leg.PREFETCH else None,
        after_attempt_id=draw(st.text()) if leg is Leg.DECODE else "",
    )


logprobs = st.lists(st.tuples(uint32, float32), max_size=3).flatmap(
    lambda pairs: st.builds(
        TokenLogprobs,
        token_ids=st.just(tuple(token for token, _ in pairs)),
        logprobs=st.just(tuple(value for _, value in pairs)),
        rank=uint32,
    )
)
outputs = st.builds(
    EngineOutput,
    attempt_id=st.text(),
    token_ids=st.lists(uint32, max_size=3),
    logprobs=st.lists(logprobs, max_size=2).map(tuple),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stop_reason=st.none() | uint32 | st.text(),
    ticket=st.binary(),
    origin=st.none() | st.builds(PromptOrigin, uint32, uint32, uint32),
    error=st.text(),
)


@given(requests())
def test_a_request_survives_the_wire(request: EngineRequest) -> None:
    wire = pb.Submit.FromString(request_to_wire(request).SerializeToString())
    assert request_from_wire(wire) == request


@given(outputs)
def test_an_output_survives_the_wire(output: EngineOutput) -> None:
    wire = pb.Output.FromString(output_to_wire(output).SerializeToString())
    assert output_from_wire(wire) == output


@pytest.mark.parametrize("role", Role)
def test_a_role_survives_the_wire(role: Role) -> None:
    assert role_from_wire(role_to_wire(role)) is role


@pytest.mark.parametrize(
    "submit",
    [
        pb.Submit(attempt_id="a", prompt_token_ids=[1]),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=99),  # type: ignore[arg-type]
        pb.Submit(attempt_id="a", leg=pb.LEG_WHOLE),
        pb.Submit(prompt_token_ids=[1], leg=pb.LEG_WHOLE),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=pb.LEG_DECODE),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=pb.LEG_WHOLE, ticket=b"t"),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=pb.LEG_WHOLE, after_attempt_id="b"),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=pb.LEG_PREFETCH),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=pb.LEG_PREFETCH, follow=pb.PrefillInProgress()),
        pb.Submit(attempt_id="a", prompt_token_ids=[1], leg=pb.LEG_PREFILL, follow=FOLLOW),
    ],
    ids=[
        "no leg",
        "unknown leg",
        "no prompt",
        "no id",
        "decode without ticket",
        "ticket without decode",
        "wait without decode",
        "prefetch of nothing",
        "prefetch of nobody",
        "follow without prefetch",
    ],
)
def test_a_submission_that_no_router_sends_is_refused(submit: pb.Submit) -> None:
    with pytest.raises(InvalidRequest, match="attempt"):
        request_from_wire(submit)


def test_an_unknown_finish_reason_and_role_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown finish reason"):
        output_from_wire(pb.Output(attempt_id="a", finish_reason=99))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="unknown worker role"):
        role_from_wire(pb.ROLE_UNSPECIFIED)


def test_a_description_carries_what_the_engine_counted() -> None:
    info = EngineInfo("simulated", "demo", 4096, 32, 100, b"print", "host:1")
    stats = EngineStats(leases_offered=3, pinned_blocks=5, transfers=(TransferCount("nixl", "landed", 2, 8, 4096),))
    described = describe_engine(info, stats)
    assert (described.engine, described.block_size, described.fingerprint) == ("simulated", 32, b"print")
    assert (described.counters.leases_offered, described.counters.pinned_blocks) == (3, 5)
    (transfer,) = described.counters.transfers
    assert (transfer.transport, transfer.outcome, transfer.bytes) == ("nixl", "landed", 4096)
