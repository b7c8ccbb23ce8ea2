"""The messages of `baton.v1.Inference` and what they mean: prompts and sampling in, deltas out.

Translation only; limits of this deployment are checked here, the model's own by the frontend.
"""

from __future__ import annotations

from cluster.errors import InvalidRequest
from protos.baton.v1 import admin_pb2, inference_pb2
from router.text_generation import (
    ChatMessage,
    ChatPrompt,
    Prompt,
    TextChunk,
    TextDelta,
    TextPrompt,
    TextSampling,
    TokenPrompt,
)


def prompt_of(request: inference_pb2.GenerateRequest | admin_pb2.DryRun) -> Prompt:
    """Raises `InvalidRequest` for a missing or empty prompt."""
    match request.WhichOneof("prompt"):
        case "text" if request.text:
            return TextPrompt(request.text)
        case "chat" if request.chat.messages:
            return ChatPrompt(tuple(ChatMessage(message.role, message.content) for message in request.chat.messages))
        case "tokens" if request.tokens.ids:
            return TokenPrompt(list(request.tokens.ids))
    raise InvalidRequest("the prompt is empty: set text, chat or tokens")


def sampling_of(wire: inference_pb2.SamplingParameters, max_choices: int) -> TextSampling:
    """Raises `InvalidRequest` for limits of this deployment; the model's own limits are checked with the prompt."""
    if wire.HasField("max_tokens") and wire.max_tokens < 1:
        raise InvalidRequest("max_tokens must be at least 1, got 0")
    if wire.HasField("n") and not 1 <= wire.n <= max_choices:
        raise InvalidRequest(f"n must be 1 to {max_choices} here, got {wire.n}")
    given = {field.name: value for field, value in wire.ListFields() if field.has_presence}
    return TextSampling(stop=tuple(wire.stop), stop_token_ids=tuple(wire.stop_token_ids), **given)


def response_of(chunk: TextChunk, request_id: str, model: str, alternatives: int = 0) -> inference_pb2.GenerateResponse:
    """`alternatives`: how many of the most likely tokens to report beside each sampled one."""
    deltas = [_delta_to_wire(delta, alternatives) for delta in chunk.deltas]
    response = inference_pb2.GenerateResponse(request_id=request_id, model=model, deltas=deltas)
    if chunk.usage is not None:
        usage = chunk.usage
        response.usage.prompt_tokens = usage.prompt_tokens
        response.usage.completion_tokens = usage.completion_tokens
        response.usage.cached_tokens = usage.cached_tokens
    return response


def _delta_to_wire(delta: TextDelta, alternatives: int) -> inference_pb2.Delta:
    wire = inference_pb2.Delta(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
    )
    for at in delta.logprobs:
        entry = wire.logprobs.add(token_id=at.token_ids[0], logprob=at.logprobs[0])
        # The sampled token is among them when it is likely enough.
        ranked = sorted(zip(at.token_ids, at.logprobs, strict=True), key=lambda entry: -entry[1])
        for token_id, logprob in ranked[:alternatives]:
            entry.top.add(token_id=token_id, logprob=logprob)
    return wire
