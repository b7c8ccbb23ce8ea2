"""Between our requests and outputs and those of vLLM's engine core, both ways: pure translation.

What travels to the connector inside the engine core, in a request's `kv_transfer_params`: `{"export": True}` asks a
prefill leg for a ticket, `{"ticket": bytes}` gives one to a decode leg, with `"after": id` of its prefetch if there is
one, `{"follow": (source, epoch, attempt id)}` makes a prefetch; on the way back `{"ticket": bytes}` is the one asked
for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine import FinishReason as VllmFinishReason

from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PromptOrigin, TokenLogprobs, TransferRung
from cluster.errors import InvalidRequest
from cluster.vllm_params import decode_params, encode_params

# Not for a client to say: where its KV comes from, and whether blocks that were told of are told again, which would
# count them twice.
_OURS = {"kv_transfer_params", "kv_cache_report_mode"}
_ERROR = "the engine reported an error for this attempt; its log says more"
_REASONS = {
    VllmFinishReason.STOP: FinishReason.STOP,
    VllmFinishReason.LENGTH: FinishReason.LENGTH,
    VllmFinishReason.ABORT: FinishReason.ABORT,
    VllmFinishReason.ERROR: FinishReason.ERROR,
    VllmFinishReason.REPETITION: FinishReason.REPETITION,
}


def to_core_request(request: EngineRequest) -> EngineCoreRequest:
    """`request.sampling.max_tokens` rules over the one in `engine_params`: a continuation changes only the former.

    Raises `InvalidRequest` for parameters that cannot be read.
    """
    params = SamplingParams(temperature=0) if request.leg is Leg.PREFETCH else decode_params(request.engine_params)
    params.max_tokens = request.sampling.max_tokens
    extra: dict[str, Any] = {key: value for key, value in (params.extra_args or {}).items() if key not in _OURS}
    match request.leg:
        case Leg.PREFILL:
            # State that spans tokens belongs to decode, which then samples the first token itself: here it would only
            # cost time (a grammar), or end the engine (on CPU, a seed whose prompt is cut into chunks).
            params.max_tokens, params.min_tokens, params.seed, params.structured_outputs = 1, 0, None, None
            extra["kv_transfer_params"] = {"export": True}
        case Leg.DECODE:
            after = {"after": request.after_attempt_id} if request.after_attempt_id else {}
            extra["kv_transfer_params"] = {"ticket": request.ticket, **after}
        case Leg.PREFETCH:
            assert request.follow is not None, "a prefetch follows a prefill"
            follow = request.follow
            extra["kv_transfer_params"] = {"follow": (follow.source, follow.epoch, follow.attempt_id)}
        case Leg.WHOLE:
            pass
    params.extra_args = extra or None
    decode_params(encode_params(params))  # refused here, it breaks nobody; refused by the engine core, it would be lost
    return EngineCoreRequest(
        request_id=request.attempt_id,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=request.cache_salt or None,
        data_parallel_rank=None,
        priority=request.priority,
        trace_headers=dict(request.trace_headers) or None,
    )


def set_connector_params(request: EngineCoreRequest, params: Mapping[str, object] | None) -> None:
    """Instead of those above, for a connector that has others; None for none."""
    assert request.sampling_params is not None
    extra = dict(request.sampling_params.extra_args or {})
    extra.pop("kv_transfer_params", None)
    if params is not None:
        extra["kv_transfer_params"] = dict(params)
    request.sampling_params.extra_args = extra or None


def from_core_output(output: EngineCoreOutput, logprobs: int | None) -> EngineOutput:
    """`logprobs`: how many alternatives the request asked for; the engine reports as many as any request of its
    batch."""
    reason = None if output.finish_reason is None else _REASONS[output.finish_reason]
    params = output.kv_transfer_params or {}
    return EngineOutput(
        attempt_id=output.request_id,
        token_ids=output.new_token_ids,
        logprobs=() if logprobs is None or output.new_logprobs is None else _logprobs(output.new_logprobs, logprobs),
        finish_reason=reason,
        stop_reason=output.stop_reason,
        ticket=params.get("ticket", b""),
        origin=None if output.prefill_stats is None else _origin(output.prefill_stats),
        rungs=tuple(TransferRung(*fields) for fields in params.get("rungs", ())),
        error=_ERROR if reason is FinishReason.ERROR else "",
    )


def check_prompt(request: EngineRequest, max_model_len: int, vocabulary: int) -> None:
    """Refuses what would break the engine for everyone. Raises `InvalidRequest`."""
    length, top = len(request.prompt_token_ids), max(request.prompt_token_ids)
    if length >= max_model_len:
        raise InvalidRequest(
            f"prompt of {length} tokens leaves no room for output: the model takes {max_model_len} in all"
        )
    if top >= vocabulary:
        raise InvalidRequest(f"token id {top} is outside the model's vocabulary of {vocabulary}")
    if request.sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, got {request.sampling.max_tokens}")


def check_seed(request: EngineCoreRequest) -> None:
    """For engines that cut prompts into chunks and cannot take the draw of an unfinished prompt back. Raises
    `InvalidRequest` for a request with its own stream of random numbers."""
    params = request.sampling_params
    if params is not None and params.sampling_type is SamplingType.RANDOM_SEED:
        raise InvalidRequest(
            "a request with a seed would end this engine, which cuts prompts into chunks on a CPU: it needs a worker "
            "whose engine_options leave enable_chunked_prefill off"
        )


def _origin(stats: Any) -> PromptOrigin:
    return PromptOrigin(
        prompt_tokens=stats.num_prompt_tokens,
        cached_tokens=stats.num_local_cached_tokens,
        pulled_tokens=stats.num_external_cached_tokens,
    )


def _logprobs(lists: Any, alternatives: int) -> tuple[TokenLogprobs, ...]:
    columns = alternatives + 1
    rows = zip(lists.logprob_token_ids, lists.logprobs, lists.sampled_token_ranks, strict=True)
    return tuple(
        TokenLogprobs(tuple(ids[:columns].tolist()), tuple(values[:columns].tolist()), int(rank))
        for ids, values, rank in rows
    )
