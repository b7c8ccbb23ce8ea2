"""Text generation for edges without HTTP, through the same code paths of vLLM's OpenAI server that HTTP requests take.

The same rendering, defaults and checks hold for both, because both are the same requests to it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.exceptions import VLLMClientError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from cluster.engine import TokenLogprobs
from cluster.errors import BatonError, EngineFailed, InvalidRequest, UnknownModel
from router.text_generation import ChatPrompt, Prompt, Rendered, TextChunk, TextDelta, TextPrompt, TextSampling, Usage
from router.vllm_fleet import FleetLLM, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.inputs import EngineInput


class VllmText:
    """Implements `text_generation.TextGeneration`."""

    def __init__(self, model: str, llm: FleetLLM, completion: OpenAIServingCompletion, chat: OpenAIServingChat) -> None:
        self.model = model
        self.max_model_len: int = llm.model_config.max_model_len
        self._llm = llm
        self._completion = completion
        self._chat = chat

    async def generate(
        self, model: str, prompt: Prompt, sampling: TextSampling, request_id: str
    ) -> AsyncGenerator[TextChunk, None]:
        with _translated():
            engine_input, params = await self._render(model or self.model, prompt, sampling)
        outputs = self._llm.generate(engine_input, params, request_id)
        tally = _Tally(len(engine_input["prompt_token_ids"]))
        try:
            with _translated():
                async for output in outputs:
                    yield tally.chunk(output)
        finally:
            await outputs.aclose()

    async def render(self, model: str, prompt: Prompt, sampling: TextSampling) -> Rendered:
        with _translated():
            engine_input, params = await self._render(model or self.model, prompt, sampling)
        assert params.max_tokens is not None  # resolved against the model's length
        return Rendered(list(engine_input["prompt_token_ids"]), params.max_tokens)

    async def _render(self, model: str, prompt: Prompt, sampling: TextSampling) -> tuple[EngineInput, SamplingParams]:
        """One prompt and its resolved parameters; admission is asked for on the way."""
        if isinstance(prompt, ChatPrompt):
            messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
            chat = ChatCompletionRequest(model=model, messages=messages, stream=True, **_chat_fields(sampling))
            rendered = _accepted(await self._chat.render_chat_request(chat))[1]
            return self._resolved(self._chat, chat, rendered[0], sampling.max_tokens)
        content = prompt.text if isinstance(prompt, TextPrompt) else prompt.token_ids
        completion = CompletionRequest(model=model, prompt=content, stream=True, **_completion_fields(sampling))
        rendered = _accepted(await self._completion.render_completion_request(completion))
        return self._resolved(self._completion, completion, rendered[0], completion.max_tokens)

    def _resolved(
        self, serving: Any, request: Any, engine_input: EngineInput, max_tokens: int | None
    ) -> tuple[EngineInput, SamplingParams]:
        limit = get_max_tokens(
            self.max_model_len,
            max_tokens,
            len(engine_input["prompt_token_ids"]),
            serving.default_sampling_params,
            serving.override_max_tokens,
        )
        return engine_input, request.to_sampling_params(limit, serving.default_sampling_params)


class _Tally:
    """Counts the tokens of one request, all its choices together, for the usage at its end."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._cached_tokens = 0

    def chunk(self, output: RequestOutput) -> TextChunk:
        deltas = tuple(_delta(choice) for choice in output.outputs)
        self._completion_tokens += sum(len(delta.token_ids) for delta in deltas)
        self._cached_tokens = max(self._cached_tokens, output.num_cached_tokens or 0)
        if not output.finished:
            return TextChunk(deltas)
        return TextChunk(deltas, Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens))


def _delta(choice: CompletionOutput) -> TextDelta:
    return TextDelta(
        index=choice.index,
        text=choice.text,
        token_ids=tuple(choice.token_ids),
        logprobs=tuple(
            _position(token_id, at) for token_id, at in zip(choice.token_ids, choice.logprobs or (), strict=False)
        ),
        finish_reason=choice.finish_reason or "",
        stop_reason="" if choice.stop_reason is None else str(choice.stop_reason),
    )


def _position(sampled: int, at: dict[int, Any]) -> TokenLogprobs:
    """The sampled token first, then the alternatives in the engine's order."""
    ids = (sampled, *(token_id for token_id in at if token_id != sampled))
    return TokenLogprobs(ids, tuple(at[token_id].logprob for token_id in ids), at[sampled].rank or 0)


def _common_fields(sampling: TextSampling) -> dict[str, Any]:
    fields = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "n": sampling.n,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _completion_fields(sampling: TextSampling) -> dict[str, Any]:
    return _common_fields(sampling) | ({} if sampling.logprobs is None else {"logprobs": sampling.logprobs})


def _chat_fields(sampling: TextSampling) -> dict[str, Any]:
    wanted = {} if sampling.logprobs is None else {"logprobs": True, "top_logprobs": sampling.logprobs}
    return _common_fields(sampling) | wanted


def _accepted(rendered: Any) -> Any:
    """Raises what an error answer of the server says."""
    if not isinstance(rendered, ErrorResponse):
        return rendered
    kind = UnknownModel if rendered.error.code == 404 else InvalidRequest
    raise kind(rendered.error.message)


@contextmanager
def _translated() -> Iterator[None]:
    """vLLM's errors as ours. `ValueError` covers pydantic's, which the request models raise."""
    try:
        yield
    except BatonError:
        raise
    except Refusal as refusal:
        raise refusal.cause from refusal
    except (VLLMClientError, TemplateError, ValueError, TypeError) as error:
        raise InvalidRequest(_explained(error)) from error
    except (EngineGenerateError, EngineDeadError) as error:
        raise EngineFailed(f"the output cannot be processed: {error.__cause__ or error}") from error


def _explained(error: Exception) -> str:
    details = error.errors() if hasattr(error, "errors") else None
    if details:
        return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}".lstrip(": ") for detail in details)
    return str(error)
