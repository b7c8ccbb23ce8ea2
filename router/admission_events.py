"""What goes into admission and what comes out: arrivals and actions.

Plain values; the rules are in `router/admission.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import BatonError
from cluster.quota import Limits, Returned, Verdict


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request at the door.

    `tokens`: what the fleet is expected to compute for it: prompt tokens that no worker has cached, and output;
    `prompt_tokens`: the former alone. `cached_tokens`: prompt tokens that some worker has. `deadline`: clock time by
    which its first token must be out; None: whenever. `verdict`: what the tenant's quota said; None: the tenant has no
    limits.
    """

    request_id: str
    tenant: str
    priority: str
    tokens: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    deadline: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Admit:
    """The request runs from now on, until `finish` or `cancel`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Queue:
    """The request waits."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request has ended without being served; `error` is what its client hears."""

    request_id: str
    error: BatonError


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The claim on the tenant's quota has ended; comes once for each request that was granted one."""

    returned: Returned


AdmissionAction = Admit | Queue | Refuse | GiveBack


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What waits and what runs now, in requests and tokens; of what runs, the prompt tokens of those without a first
    token yet."""

    queued_requests: int
    queued_tokens: int
    running_requests: int
    running_tokens: int
    starting_tokens: int = 0


def give_back(arrival: Arrival, limits: Limits, used_tokens: int | None) -> GiveBack:
    """`used_tokens` None: the request was not served."""
    unused = arrival.tokens if used_tokens is None else max(0, arrival.tokens - used_tokens)
    return GiveBack(
        Returned(arrival.tenant, arrival.request_id, limits, unused, unused_requests=1 if used_tokens is None else 0)
    )
