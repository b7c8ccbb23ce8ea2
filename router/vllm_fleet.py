"""vLLM's engine client with the fleet where the engine core would be: the seam between vLLM's frontend and this router.

Requests go down to `Dispatch`; emissions come up by a direct call, without a queue or a task that could die. This file
alone knows how vLLM spells a request and an output; what it rests on is listed in its test.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.exceptions import GracefulHTTPError
from vllm.renderers import renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine import FinishReason as CoreFinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists

from cluster.engine import FinishReason, Sampling, TokenLogprobs
from cluster.errors import BatonError, EngineFailed, InvalidRequest, answer_for
from cluster.vllm_params import encode_params
from router.caller import Caller, current_caller
from router.dispatch import Dispatch
from router.generation import Emission, GenerationRequest, Outcome
from router.sampling_state import SamplingFacts
from router.session_id import current_session

logger = logging.getLogger(__name__)

_FINISH_REASONS = {  # what is answered; the others are failures, which come as errors
    FinishReason.STOP: CoreFinishReason.STOP,
    FinishReason.LENGTH: CoreFinishReason.LENGTH,
    FinishReason.REPETITION: CoreFinishReason.REPETITION,
}


class Refusal(GracefulHTTPError):
    """A `BatonError` on its way through vLLM's frontend, which answers it with the HTTP status that our table gives."""

    def __init__(self, cause: BatonError) -> None:
        super().__init__(str(cause), answer_for(cause).http)
        self.cause = cause


class FleetClient:
    """What the frontend calls on its engine core while it serves."""

    engine_ranks_managed = (0,)
    resources = SimpleNamespace(engine_dead=False)

    def __init__(self, dispatch: Dispatch, llm: FleetLLM) -> None:
        self._dispatch = dispatch
        self._llm = llm

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Never raises: by now the frontend keeps state for the request, so a refusal reaches it as an emission. Where
        it keeps none any more, an earlier choice was refused, which has ended them all: nobody would read this one."""
        if request.request_id not in self._llm.output_processor.request_states:
            return
        caller = current_caller()
        try:
            generation = to_generation(request, self._llm.custom_logits, caller)
        except InvalidRequest as error:
            caller.hear(error)
            self._llm.deliver([Emission(request.request_id, [], error=error)])
        else:
            self._dispatch.submit(generation)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self._dispatch.cancel(request_ids)

    def shutdown(self, timeout: float | None = None) -> None:
        """The fleet outlives the frontend; its owner closes it."""


class FleetLLM(AsyncLLM):
    """`__init__` sets what the base class's would, less a local engine. Also the sink of all emissions."""

    def __init__(self, vllm_config: VllmConfig, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.scheduler_config = vllm_config.scheduler_config
        self.observability_config = vllm_config.observability_config
        self.custom_logits = bool(vllm_config.model_config.logits_processors)
        self.log_requests = False
        self.log_stats = False
        self.admission_stats = None
        self.logger_manager = None
        self.output_handler = None
        self.profiler = None
        self._client_count = 1
        self._elastic_ep_lock = asyncio.Lock()
        self._profile_lock = asyncio.Lock()
        self._profile_session_active = False
        self._profile_session_guard_enabled = True
        self._frontend_profiler_injected = False
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self.output_processor = OutputProcessor(
            self.renderer.tokenizer,
            log_stats=False,
            stream_interval=vllm_config.scheduler_config.stream_interval,
            tracing_enabled=False,
        )
        self.engine_core = FleetClient(dispatch, self)
        dispatch.connect(self)

    def _run_output_handler(self) -> None:
        """Outputs are pushed by `deliver`: there is no loop to run, and none that could end unseen."""

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        caller = current_caller()
        try:
            self._dispatch.admit(n, caller)
        except BatonError as error:
            caller.hear(error)
            raise Refusal(error) from error

    def deliver(self, emissions: Sequence[Emission]) -> None:
        stopped: list[str] = []
        for emission in emissions:
            if emission.error is not None:
                self._fail(emission.request_id, emission.error)
                continue
            try:
                # One at a time: an output that cannot be processed must fail its own request only.
                processed = self.output_processor.process_outputs([_core_output(emission)])
            except Exception as error:
                logger.exception("output of request %s cannot be processed", emission.request_id)
                self._fail(emission.request_id, EngineFailed(f"the output cannot be processed: {error}"))
            else:
                stopped += processed.reqs_to_abort
        if stopped:
            self._dispatch.cancel(stopped, Outcome.COMPLETED)

    def _fail(self, request_id: str, error: BatonError) -> None:
        """Wakes whoever waits for the request with the error, and ends its sibling choices."""
        state = self.output_processor.request_states.get(request_id)
        if state is None:
            return
        family = state.parent_req.request_id if state.parent_req is not None else request_id
        state.queue.put(Refusal(error))
        self._dispatch.cancel(self.output_processor.abort_requests([family], internal=True), Outcome.FAILED)


def to_generation(request: EngineCoreRequest, custom_logits: bool, caller: Caller) -> GenerationRequest:
    """Raises `InvalidRequest` for what a fleet of this version cannot do."""
    params = request.sampling_params
    refused = next((what for what, present in _unsupported(request, params) if present), None)
    if refused is not None:
        raise InvalidRequest(f"{refused} not supported by this deployment")
    sampling = Sampling(
        max_tokens=params.max_tokens,
        ignore_eos=params.ignore_eos,
        stop_token_ids=tuple(params.stop_token_ids),
        logprobs=params.num_logprobs,
    )
    return GenerationRequest(
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=sampling,
        facts=sampling_facts(params, custom_logits),
        engine_params=encode_params(params),
        cache_salt=caller.salted(request.cache_salt or ""),
        priority=request.priority,
        trace_headers=request.trace_headers or {},
        client_id=_client_id(request),
        session_id=current_session(),
        caller=caller,
    )


def _client_id(request: EngineCoreRequest) -> str:
    """The `id` in the client's answer. The frontend numbers prompts behind it, choices before it, and adds chance."""
    own, sampled = request.request_id, request.external_req_id or request.request_id
    choice, _, rest = own.partition("_")
    if choice.isdecimal() and rest.startswith(sampled) and choice != "0":
        return f"{choice}_{sampled}"
    return sampled.removesuffix("-0") if sampled.startswith("cmpl-") else sampled


def sampling_facts(params: SamplingParams, custom_logits: bool) -> SamplingFacts:
    """`custom_logits`: the deployment has logits processors of its own."""
    return SamplingFacts(
        seeded=params.seed is not None and params.temperature > 0,
        penalties=bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0),
        grammar=params.structured_outputs is not None,
        min_tokens=params.min_tokens > 0,
        bad_words=bool(params.bad_words),
        thinking_budget=params.thinking_token_budget is not None,
        repetition_detection=params.repetition_detection is not None,
        custom_logits=custom_logits or bool(params.extra_args) or bool(params.trace_decode_token_ids),
    )


def _unsupported(request: EngineCoreRequest, params: SamplingParams | None) -> Iterable[tuple[str, bool]]:
    yield "pooling is", params is None
    if params is None:
        return
    yield "images, audio and video are", bool(request.mm_features)
    yield "prompt embeddings are", request.prompt_embeds is not None or request.prompt_token_ids is None
    yield "LoRA adapters are", request.lora_request is not None
    yield "streamed input is", request.resumable
    yield "prompt_logprobs is", params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None


def _core_output(emission: Emission) -> EngineCoreOutput:
    reason = emission.finish_reason
    return EngineCoreOutput(
        request_id=emission.request_id,
        new_token_ids=emission.token_ids,
        new_logprobs=_core_logprobs(emission.logprobs) if emission.logprobs else None,
        finish_reason=None if reason is None else _FINISH_REASONS[reason],
        stop_reason=emission.stop_reason,
        prefill_stats=_prefill_stats(emission.cached_tokens),
    )


def _core_logprobs(positions: Sequence[TokenLogprobs]) -> LogprobsLists:
    """Row i: the sampled token of position i, then its alternatives."""
    return LogprobsLists(
        logprob_token_ids=np.array([at.token_ids for at in positions], dtype=np.int64),
        logprobs=np.array([at.logprobs for at in positions], dtype=np.float32),
        sampled_token_ranks=np.array([at.rank for at in positions], dtype=np.int64),
    )


def _prefill_stats(cached_tokens: int | None) -> Any:
    return None if cached_tokens is None else PrefillStats(num_cached_tokens=cached_tokens)
