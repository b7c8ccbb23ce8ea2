"""What the pipeline of a request asks about the fleet, and the rules that it goes by.

Answers are somebody else's: `request_choices`, `retry_budget` and `dispatch` give them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from cluster.engine import EngineRequest, Leg, PrefillInProgress, Role
from router.recovery import RecoveryRules

Choose = Callable[[Leg, Role, frozenset[str], str | None], str | None]
"""Picks a ready worker of the role for the leg, none of the given ids, the one preferred if it can be; None when there
is none."""

WholePays = Callable[[frozenset[str]], bool]
"""Whether a request that could be split had better run whole, the given ids apart: on a decode worker, or on any worker
where there is none."""

Follow = Callable[[str, EngineRequest], PrefillInProgress | None]
"""How others can follow this prefill leg on this worker; None: it is not worth it, or cannot be."""

Retry = Callable[[int], float | None]
"""How many seconds to wait before the retry after so many errors of this request; None: there is to be none."""

Patience = Callable[[Collection[Role], bool], float | None]
"""In how many seconds to look again, where one of these pools has no worker and begins again; for a request that has
begun, also where one has just lost its last, who may be back in a moment. None: there is nobody to wait for."""


@dataclass(frozen=True, slots=True)
class PipelineRules:
    """`first_token_from_prefill`: whether decode can go on behind a token that prefill sampled; if not, decode samples
    the first token of every request itself."""

    first_token_from_prefill: bool = True
    recovery: RecoveryRules = field(default_factory=RecoveryRules)


@dataclass(frozen=True, slots=True)
class Questions:
    """What a pipeline asks about the fleet."""

    choose: Choose
    follow: Follow = lambda *_: None
    whole_pays: WholePays = lambda _: False
    retry: Retry = lambda _: 0.0
    patience: Patience = lambda *_: None


DEFAULT_PIPELINE_RULES = PipelineRules()
