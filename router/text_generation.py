"""What a text edge (the gRPC API) asks of the frontend: a prompt in one of three forms in, text deltas out.

Plain types only: the edge must not know which tokenizer or template stands behind them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from cluster.engine import TokenLogprobs


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: list[int]


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class TextSampling:
    """None takes the default that the same request over HTTP would take."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next part of choice `index`. `finish_reason` and `stop_reason` are empty while it goes on."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str = ""
    stop_reason: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TextChunk:
    """`usage` comes with the last chunk."""

    deltas: tuple[TextDelta, ...]
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a prompt becomes: `max_tokens` of output are allowed behind it."""

    token_ids: list[int]
    max_tokens: int


class TextGeneration(Protocol):
    """`model` is the name clients use; `max_model_len` counts prompt and output tokens together."""

    model: str
    max_model_len: int

    def generate(
        self, model: str, prompt: Prompt, sampling: TextSampling, request_id: str
    ) -> AsyncGenerator[TextChunk, None]:
        """Raises before anything is queued: `InvalidRequest`, `UnknownModel`, `Overloaded`, `NoWorker`. Later, any
        `BatonError`. Closing the iterator aborts the request."""
        ...

    async def render(self, model: str, prompt: Prompt, sampling: TextSampling) -> Rendered:
        """What `generate` would send to the fleet. Raises what it raises before anything is queued."""
        ...
