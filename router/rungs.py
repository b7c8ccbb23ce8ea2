"""What is tried next for a request, best first: legs, and the pools whose workers are to do them. Pure.

The one home of that order: `pipeline` climbs it, `dry_run` tells what it would do. It must not know workers.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.engine import Leg, Role
from router.generation import GenerationRequest

Rung = tuple[Leg, Role]

_APART, _WHOLE, _WHOLE_ON_PREFILL = (Leg.PREFILL, Role.PREFILL), (Leg.WHOLE, Role.DECODE), (Leg.WHOLE, Role.PREFILL)


def first_rungs(
    request: GenerationRequest, whole_pays: Callable[[], bool], prefill_may_decode: bool
) -> tuple[Rung, ...]:
    """Of a request of which nothing has been computed.

    one token wanted                        all of it on a prefill worker, else on a decode worker
    the same with a seed                    the other way round: who cuts prompts into chunks may refuse it
    more than one                           prefill, else all of it on a decode worker
    the same where that is predicted to be  all of it on a decode worker, else on a prefill worker; where the
    worse, or a pool has nobody             configuration keeps those from decoding, no prompt is computed in vain
    """
    if request.sampling.max_tokens == 1:
        return (_WHOLE, _WHOLE_ON_PREFILL) if request.facts.seeded else (_WHOLE_ON_PREFILL, _WHOLE)
    if not whole_pays():
        return _APART, _WHOLE
    return (_WHOLE, _WHOLE_ON_PREFILL) if prefill_may_decode else (_WHOLE,)


def next_rungs(handed_over: bool, remaining: int, prefill_may_decode: bool) -> tuple[Rung, ...]:
    """Of a request whose prompt has been computed, and which still wants so many tokens.

    blocks wait for a reader    decode; if none is ready, the prefill worker continues itself
    the hand-over is off        prompt and emitted tokens on a decode worker, else on a prefill worker

    The configuration may keep more than one token of output away from prefill workers.
    """
    first = (Leg.DECODE, Role.DECODE) if handed_over else _WHOLE
    return (first, _WHOLE_ON_PREFILL) if prefill_may_decode or remaining == 1 else (first,)
