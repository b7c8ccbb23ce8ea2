"""The door of one router: what admission and the tenants' quotas say of every request before it reaches a worker.

Turns requests into arrivals and asks for the tenant's quota first, where there is one; the answer may come later. It
must not know workers, pipelines or clients, and starts nothing itself: its rulings are for the caller to carry out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from cluster.config_admission import AdmissionConfig, TenantConfig
from cluster.errors import BatonError, ConfigError, InvalidRequest, RequestTooLarge
from cluster.quota import Claim, Limits, Returned, Verdict, limits_of
from router.admission import Admission
from router.admission_events import AdmissionAction, Admit, Arrival, GiveBack, Occupancy, Refuse
from router.caller import Caller
from router.generation import GenerationRequest

Ruling = Admit | Refuse
"""The request runs from now on, or has ended at the door."""

LateRulings = Callable[[list[Ruling]], None]

KnownTokens = Callable[[], int]
"""How many of a request's prompt tokens some worker has cached by now, as far as is known."""


class Quota(Protocol):
    """Where tenants' limits are kept. Nothing here waits."""

    def ask(self, claim: Claim, answer: Callable[[Verdict | BatonError], None]) -> None:
        """`answer` is called once, later, unless the claim is dropped; with an error when nobody could say."""
        ...

    def drop(self, claim_id: str) -> None:
        """Nobody waits for the answer any more; whatever was taken goes back."""
        ...

    def give_back(self, returned: Returned) -> None: ...


class Gate:
    """`running_requests`: how many may run at once. `now` gives seconds of a monotonic clock.

    Raises `ConfigError` when tenants have limits and there is no `quota` to ask.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        running_requests: int,
        now: Callable[[], float],
        quota: Quota | None = None,
    ) -> None:
        limited = [name for name, tenant in config.tenants.items() if limits_of(tenant)]
        if quota is None and (limited or limits_of(config.default_tenant)):
            raise ConfigError("admission: tenants have limits, but this router has no store to count them in")
        self._config = config
        self._running_requests = running_requests
        self._admission = Admission(config, running_requests)
        self._now = now
        self._quota = quota
        self._held = False
        self._starting_tokens = float("inf")
        self._asking: set[str] = set()
        self._known: dict[str, KnownTokens] = {}  # of requests that wait

    # Events

    def submit(
        self, request: GenerationRequest, deadline: float, later: LateRulings, known: KnownTokens = lambda: 0
    ) -> list[Ruling]:
        """What is decided at once, of this request and of others. `later` gets the rulings of an answer to come.
        `known` is asked where the request has to wait, and again while it waits."""
        caller, request_id = request.caller, request.request_id
        limits = limits_of(self._config.tenant(caller.tenant))
        try:
            self._admission.rank_of(caller.tenant, caller.priority)
            _check_length(request, self._config.tenant(caller.tenant))
        except InvalidRequest as error:
            return [Refuse(request_id, error)]
        tokens = _tokens(request, known() if self._admission.crowded else 0)
        arrival = Arrival(request_id, caller.tenant, caller.priority, *tokens, deadline=deadline)
        self._known[request_id] = known
        if self._quota is None or not limits:
            return self._rulings(self._admission.submit(arrival, self._now()))
        self._ask(self._quota, arrival, limits, later)
        return []

    def leave(self, request_id: str, used_tokens: int) -> list[Ruling]:
        """The request has ended or is wanted no longer, wherever it was; the fleet has computed so many tokens for it.
        Unknown ids are no error."""
        self._known.pop(request_id, None)
        if request_id in self._asking and self._quota is not None:
            self._asking.discard(request_id)
            self._quota.drop(request_id)
            return []
        return self._rulings(self._admission.cancel(request_id, self._now(), used_tokens))

    def started(self, request_id: str) -> list[Ruling]:
        """The request has its first token. Unknown ids, and a second time, are no error."""
        return self._rulings(self._admission.started(request_id, self._now()))

    def hold(self, held: bool) -> None:
        """Nobody gets in, and nobody is refused for it: workers are going to come. From the next event on."""
        if held != self._held:
            self._held = held
            self._admission.bound(self._most_running, self._starting_tokens)

    def on_time(self, tokens_within: Callable[[float], float] = lambda _: float("inf")) -> list[Ruling]:
        """`tokens_within`: how many prompt tokens the fleet computes for this router in so many seconds."""
        self._starting_tokens = tokens_within(self._config.worker_queue_s)
        self._admission.bound(self._most_running, self._starting_tokens)
        for request_id in self._admission.next_up():
            self._admission.on_cached(request_id, self._known[request_id]())
        return self._rulings(self._admission.on_time(self._now()))

    # Questions

    def check(self, caller: Caller, requests: int) -> None:
        """Whether it makes sense to prepare so many requests. Raises `InvalidRequest`, `Overloaded`."""
        self._admission.check(caller.tenant, caller.priority, requests)

    @property
    def occupancy(self) -> Occupancy:
        return self._admission.occupancy

    def check_integrity(self, waiting: int, running: int) -> None:
        """Recounts; so many requests are not started yet, and so many are. Raises AssertionError where that differs."""
        self._admission.check_integrity()
        assert len(self._known) == waiting, "what is asked of the index and what waits differ"
        occupancy = self._admission.occupancy
        assert (occupancy.queued_requests + len(self._asking), occupancy.running_requests) == (waiting, running)

    # Inside

    @property
    def _most_running(self) -> int:
        return 0 if self._held else self._running_requests

    def _ask(self, quota: Quota, arrival: Arrival, limits: Limits, later: LateRulings) -> None:
        def answer(verdict: Verdict | BatonError) -> None:
            self._asking.discard(arrival.request_id)
            if isinstance(verdict, BatonError):
                self._known.pop(arrival.request_id, None)
                return later([Refuse(arrival.request_id, verdict)])
            later(self._rulings(self._admission.submit(replace(arrival, verdict=verdict), self._now())))

        self._asking.add(arrival.request_id)
        quota.ask(Claim(arrival.tenant, arrival.request_id, arrival.tokens, limits), answer)

    def _rulings(self, actions: list[AdmissionAction]) -> list[Ruling]:
        rulings: list[Ruling] = []
        for action in actions:
            match action:
                case Admit() | Refuse():
                    self._known.pop(action.request_id, None)
                    rulings.append(action)
                case GiveBack(returned) if self._quota is not None:
                    self._quota.give_back(returned)
        return rulings


def _check_length(request: GenerationRequest, tenant: TenantConfig) -> None:
    """Raises `RequestTooLarge`."""
    length, most = len(request.prompt_token_ids), tenant.max_prompt_tokens
    if most is not None and length > most:
        raise RequestTooLarge(f"the prompt has {length} tokens, your limit is {most}")


def _tokens(request: GenerationRequest, known: int) -> tuple[int, int, int]:
    """What is to be computed at most, of that the prompt's, and what is cached. At least the last prompt token is
    always computed."""
    prompt = len(request.prompt_token_ids)
    cached = min(known, max(0, prompt - 1))
    return prompt - cached + request.sampling.max_tokens, prompt - cached, cached
