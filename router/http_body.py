"""What the body of a POST must be before vLLM's server sees it: pure checks on decoded JSON.

Only what that server would let pass, or answer too late: internal fields, and limits of this deployment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.config import RouterConfig
from cluster.errors import InvalidRequest
from router.caller import PRIORITY_HEADER, WORD_RULE, is_word

INTERNAL_FIELDS = frozenset(
    {
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "kv_hints",
        "data_parallel_rank",
        "routed_experts_prompt_start",
        "trace_decode_token_ids",
    }
)
"""They name blocks and addresses inside the cluster, or reach code of the engine unchecked."""

UNSUPPORTED_FIELDS = frozenset(
    {"prompt_logprobs", "prompt_logprob_token_ids", "prompt_embeds", "use_beam_search", "background"}
)

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CHOICES = ("n", "best_of")


class InvalidField(InvalidRequest):
    """One field is at fault; `param` names it in the error object."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


def checked_body(body: bytes, config: RouterConfig) -> None:
    """Raises `InvalidRequest`, of which `InvalidField` names the field."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise InvalidRequest("the body must be a JSON object")
    _check_fields(decoded)
    _check_numbers(decoded, config)


def _check_fields(body: Mapping[str, Any]) -> None:
    for name in sorted(body.keys() & INTERNAL_FIELDS):
        if body[name] is not None:
            raise InvalidField(f"{name} is internal to the deployment and cannot be set by a client", name)
    for name in sorted(body.keys() & UNSUPPORTED_FIELDS):
        if body[name] is not None and body[name] is not False:
            raise InvalidField(f"{name} is not supported by this deployment", name)
    if body.get("priority") not in (None, 0):
        raise InvalidField(f"priority is the engines' own: name a class in the header {PRIORITY_HEADER}", "priority")
    request_id = body.get("request_id")
    if request_id is not None and not (isinstance(request_id, str) and is_word(request_id)):
        raise InvalidField(f"request_id must be {WORD_RULE}", "request_id")
    if body.get("echo") is True and isinstance(body.get("logprobs"), int):
        raise InvalidField("echo together with logprobs is not supported by this deployment", "echo")


def _check_numbers(body: Mapping[str, Any], config: RouterConfig) -> None:
    for name in _LIMITS:
        if (limit := _whole(body, name)) is not None and limit < 1:
            raise InvalidField(f"{name} must be at least 1, got {limit}", name)
    for name in _CHOICES:
        if (choices := _whole(body, name)) is not None and not 1 <= choices <= config.max_choices:
            raise InvalidField(f"{name} must be 1 to {config.max_choices} here, got {choices}", name)
    prompts = body.get("prompt")
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        _check_prompts(prompts, body.get("n") or 1, config)


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    """The server behind would take `"16"` and `16.0` for 16, past every check here."""
    value: object = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise InvalidField(f"{name} must be a whole number", name)


def _check_prompts(prompts: list[Any], n: int, config: RouterConfig) -> None:
    """Several prompts in one request: one that cannot work must not leave the others queued."""
    if not all(prompts):
        raise InvalidField("one of the prompts is empty", "prompt")
    choices = len(prompts) * n
    if choices > config.max_in_flight:
        raise InvalidField(f"{choices} choices in one request, the limit is {config.max_in_flight}", "prompt")
