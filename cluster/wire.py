"""Between our types and worker.proto, both ways: the only place that knows both.

Decoding checks: what a peer sends wrong raises `InvalidRequest`, never a `KeyError` deep inside.
"""

from __future__ import annotations

import time

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
    TransferRung,
)
from cluster.errors import InvalidRequest
from cluster.release import release
from protos.baton.v1 import kv_pb2
from protos.baton.v1 import worker_pb2 as pb

_LEGS = {
    Leg.PREFILL: pb.LEG_PREFILL,
    Leg.DECODE: pb.LEG_DECODE,
    Leg.WHOLE: pb.LEG_WHOLE,
    Leg.PREFETCH: pb.LEG_PREFETCH,
}
_LEGS_BACK = {wire: leg for leg, wire in _LEGS.items()}
_ROLES = {Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE}
_ROLES_BACK = {wire: role for role, wire in _ROLES.items()}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
    FinishReason.REPETITION: pb.FINISH_REASON_REPETITION,
    FinishReason.MOVED: pb.FINISH_REASON_MOVED,
    FinishReason.LOST: pb.FINISH_REASON_LOST,
}
_REASONS_BACK = {wire: reason for reason, wire in _REASONS.items()}


def role_to_wire(role: Role) -> pb.Role.ValueType:
    return _ROLES[role]


def role_from_wire(role: pb.Role.ValueType) -> Role:
    """Raises `InvalidRequest` for a role that is not a pool's."""
    try:
        return _ROLES_BACK[role]
    except KeyError:
        raise InvalidRequest(f"unknown worker role {role}") from None


def request_to_wire(request: EngineRequest) -> pb.Submit:
    sampling = pb.Sampling(
        max_tokens=request.sampling.max_tokens,
        ignore_eos=request.sampling.ignore_eos,
        stop_token_ids=request.sampling.stop_token_ids,
        logprobs=request.sampling.logprobs,
    )
    return pb.Submit(
        attempt_id=request.attempt_id,
        leg=_LEGS[request.leg],
        prompt_token_ids=request.prompt_token_ids,
        sampling=sampling,
        engine_params=request.engine_params,
        ticket=request.ticket,
        cache_salt=request.cache_salt,
        priority=request.priority,
        trace_headers=request.trace_headers,
        follow=None if request.follow is None else _follow_to_wire(request.follow),
        after_attempt_id=request.after_attempt_id,
    )


def request_from_wire(submit: pb.Submit) -> EngineRequest:
    """Raises `InvalidRequest` for a submission that no router of this version sends."""
    if submit.leg not in _LEGS_BACK:
        raise InvalidRequest(f"attempt {submit.attempt_id!r}: unknown leg {submit.leg}")
    if not submit.attempt_id or not submit.prompt_token_ids:
        raise InvalidRequest(f"attempt {submit.attempt_id!r}: needs an id and a prompt")
    leg = _LEGS_BACK[submit.leg]
    if bool(submit.ticket) != (leg is Leg.DECODE):
        raise InvalidRequest(f"attempt {submit.attempt_id!r}: a ticket goes with the decode leg, and only with it")
    if submit.HasField("follow") != (leg is Leg.PREFETCH):
        raise InvalidRequest(f"attempt {submit.attempt_id!r}: what to follow goes with a prefetch, and only with it")
    if submit.after_attempt_id and leg is not Leg.DECODE:
        raise InvalidRequest(f"attempt {submit.attempt_id!r}: only the decode leg waits for a prefetch")
    sampling = Sampling(
        max_tokens=submit.sampling.max_tokens,
        ignore_eos=submit.sampling.ignore_eos,
        stop_token_ids=tuple(submit.sampling.stop_token_ids),
        logprobs=submit.sampling.logprobs if submit.sampling.HasField("logprobs") else None,
    )
    return EngineRequest(
        attempt_id=submit.attempt_id,
        leg=leg,
        prompt_token_ids=list(submit.prompt_token_ids),
        sampling=sampling,
        engine_params=submit.engine_params,
        ticket=submit.ticket,
        cache_salt=submit.cache_salt,
        priority=submit.priority,
        trace_headers=dict(submit.trace_headers),
        follow=_follow_from_wire(submit.follow) if submit.HasField("follow") else None,
        after_attempt_id=submit.after_attempt_id,
    )


def output_to_wire(output: EngineOutput) -> pb.Output:
    wire = pb.Output(attempt_id=output.attempt_id, token_ids=output.token_ids, ticket=output.ticket, error=output.error)
    if output.finish_reason is not None:
        wire.finish_reason = _REASONS[output.finish_reason]
    for at in output.logprobs:
        wire.logprobs.add(token_ids=at.token_ids, logprobs=at.logprobs, rank=at.rank)
    match output.stop_reason:
        case int(token_id):
            wire.stop_token_id = token_id
        case str(text):
            wire.stop_text = text
    if output.origin is not None:
        wire.origin.CopyFrom(
            pb.PromptOrigin(
                prompt_tokens=output.origin.prompt_tokens,
                cached_tokens=output.origin.cached_tokens,
                pulled_tokens=output.origin.pulled_tokens,
            )
        )
    for rung in output.rungs:
        wire.rungs.add(
            transport=rung.transport,
            outcome=rung.outcome,
            blocks=rung.blocks,
            bytes=rung.bytes,
            reason=rung.reason,
            began_unix_s=rung.began_unix_s,
            seconds=rung.seconds,
            handshake_s=rung.handshake_s,
        )
    return wire


def output_from_wire(wire: pb.Output) -> EngineOutput:
    """Raises `InvalidRequest` for a finish reason that this version does not know."""
    if wire.finish_reason and wire.finish_reason not in _REASONS_BACK:
        raise InvalidRequest(f"attempt {wire.attempt_id!r}: unknown finish reason {wire.finish_reason}")
    stop = wire.WhichOneof("stop_reason")
    return EngineOutput(
        attempt_id=wire.attempt_id,
        token_ids=list(wire.token_ids),
        logprobs=tuple(TokenLogprobs(tuple(at.token_ids), tuple(at.logprobs), at.rank) for at in wire.logprobs),
        finish_reason=_REASONS_BACK.get(wire.finish_reason),
        stop_reason=None if stop is None else wire.stop_token_id if stop == "stop_token_id" else wire.stop_text,
        ticket=wire.ticket,
        origin=_origin_from_wire(wire.origin) if wire.HasField("origin") else None,
        rungs=tuple(_rung_from_wire(rung) for rung in wire.rungs),
        error=wire.error,
    )


def describe_engine(info: EngineInfo, stats: EngineStats) -> pb.WorkerDescription:
    """The engine's part of a worker's description; the worker adds who it is, its state and its outcomes."""
    return pb.WorkerDescription(
        engine=info.engine,
        model=info.model,
        max_model_len=info.max_model_len,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        fingerprint=info.fingerprint,
        source=info.source,
        version=release(),
        clock_unix_s=time.time(),
        counters=pb.Counters(
            transfers=[transfer_to_wire(count) for count in stats.transfers],
            recomputed_requests=stats.recomputed_requests,
            blocks_sent=stats.blocks_sent,
            bytes_sent=stats.bytes_sent,
            leases_offered=stats.leases_offered,
            leases_released=stats.leases_released,
            leases_expired=stats.leases_expired,
            pinned_blocks=stats.pinned_blocks,
        ),
    )


def _follow_to_wire(follow: PrefillInProgress) -> pb.PrefillInProgress:
    return pb.PrefillInProgress(source=follow.source, epoch=follow.epoch, attempt_id=follow.attempt_id)


def _follow_from_wire(wire: pb.PrefillInProgress) -> PrefillInProgress:
    if not (wire.source and wire.attempt_id):
        raise InvalidRequest("a prefetch must name the source and the attempt that it follows")
    return PrefillInProgress(wire.source, wire.epoch, wire.attempt_id)


def transfer_to_wire(count: TransferCount) -> kv_pb2.TransferCount:
    return kv_pb2.TransferCount(
        transport=count.transport,
        outcome=count.outcome,
        count=count.count,
        blocks=count.blocks,
        bytes=count.bytes,
        seconds=count.seconds,
    )


def _rung_from_wire(wire: pb.PullRung) -> TransferRung:
    times = wire.began_unix_s, wire.seconds, wire.handshake_s
    return TransferRung(wire.transport, wire.outcome, wire.blocks, wire.bytes, wire.reason, *times)


def _origin_from_wire(origin: pb.PromptOrigin) -> PromptOrigin:
    return PromptOrigin(origin.prompt_tokens, origin.cached_tokens, origin.pulled_tokens)
