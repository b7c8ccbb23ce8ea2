"""Tenants who send at their own times, whatever becomes of what they sent, and what each of them got.

On any clock, to any dispatch. The sizes here are those of one cluster, `POOLS`, that both the test on a virtual clock
and the benchmark in real time ask.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.clock import Clock
from cluster.config_admission import AdmissionConfig
from cluster.engine import Role
from cluster.errors import RetryLater
from router.gate import Gate
from tests.router.admission_load import Sender
from tests.router.simulated_cluster import Answer, Clients, engine_config

PREFILL = engine_config(step_s=0.005, prefill_token_s=0.0002)
DECODE = engine_config(step_s=0.04)
POOLS = {Role.PREFILL: 20, Role.DECODE: 8}
SEATS = 32  # let run at once: about half of them are in prefill, so that engines have hardly a queue of their own
OUTPUT = 10
PROMPT = (500, 1_500)

WEIGHTS = {"gold": 3.0, "bronze": 1.0}
OVERLOAD = 3.0  # what is asked for, as a multiple of what can be served
VICTIM_SHARE = 0.2  # of the capacity; beside one other tenant of its weight it may have half
WARM_S = 4.0
_QUEUE = {"max_requests": 400}


@dataclass(frozen=True, slots=True)
class Sent:
    """Seconds since the load began. `tokens`: what it cost to serve, prompt and output; 0 where it was refused."""

    tenant: str
    came_s: float
    ended_s: float
    ttft_s: float
    tokens: int


class Load:
    def __init__(self, clients: Clients, clock: Clock) -> None:
        self._clients = clients
        self._clock = clock
        self._begin = clock.now()
        self.sent: list[Sent] = []

    async def run(self, senders: Sequence[Sender], seconds: float, seed: int) -> None:
        """A sender's times and prompts depend on the seed and its tenant alone."""
        await asyncio.gather(*(self._send(sender, seconds, f"{seed}-{sender.tenant}") for sender in senders))

    async def circle(self, seconds: float) -> None:
        """As many at once as can run, and as many again that wait for them."""
        draw = random.Random(1)

        async def one_after_the_other() -> None:
            while self._now < seconds:
                await self._ask("any", _prompt(draw, *PROMPT))

        await asyncio.gather(*(one_after_the_other() for _ in range(2 * SEATS)))

    def served(self, tenant: str, from_s: float, until_s: float) -> int:
        """Tokens."""
        return sum(s.tokens for s in self.sent if s.tenant == tenant and from_s <= s.ended_s < until_s)

    def ttfts(self, tenant: str) -> list[float]:
        return [s.ttft_s for s in self.sent if s.tenant == tenant and s.tokens and s.came_s >= WARM_S]

    def refused(self, tenant: str) -> int:
        return sum(s.tenant == tenant and not s.tokens for s in self.sent)

    @property
    def _now(self) -> float:
        return self._clock.now() - self._begin

    async def _send(self, sender: Sender, seconds: float, seed: str) -> None:
        draw, lengths = random.Random(seed), random.Random(f"{seed} prompts")
        async with asyncio.TaskGroup() as under_way:
            for at in sender.times(draw):
                if at >= seconds:
                    return
                await self._clock.sleep(max(0.0, at - self._now))
                under_way.create_task(self._ask(sender.tenant, _prompt(lengths, sender.least, sender.most)))

    async def _ask(self, tenant: str, prompt: list[int]) -> None:
        answer = await self._clients.ask(prompt, OUTPUT, tenant)
        cost = len(prompt) + OUTPUT if _served(answer) else 0
        first_s = 0.0 if answer.first_at is None else answer.first_at - answer.came_at
        self.sent.append(Sent(tenant, answer.came_at - self._begin, self._now, first_s, cost))


def _prompt(draw: random.Random, least: int, most: int) -> list[int]:
    """No two share a block."""
    return [draw.getrandbits(31), *range(draw.randint(least, most) - 1)]


def _served(answer: Answer) -> bool:
    """Raises what was neither an answer nor a refusal."""
    if answer.error is not None and not isinstance(answer.error, RetryLater):
        raise answer.error
    return answer.error is None


def gate_for(weights: dict[str, float], now: Callable[[], float]) -> Gate:
    tenants = {name: {"weight": weight} for name, weight in weights.items()}
    return Gate(AdmissionConfig.model_validate({"queue": _QUEUE, "tenants": tenants}), SEATS, now)


def overload(tokens_per_s: float) -> list[Sender]:
    """Each tenant of `WEIGHTS` asks for more than all that can be served."""
    return [Sender(tenant, OVERLOAD * tokens_per_s / len(WEIGHTS), *PROMPT) for tenant in WEIGHTS]


def victim(tokens_per_s: float, flooded: bool) -> list[Sender]:
    alone = [Sender("victim", VICTIM_SHARE * tokens_per_s, *PROMPT)]
    return [*alone, Sender("flood", OVERLOAD * tokens_per_s, *PROMPT)] if flooded else alone


def shares_of(load: Load, until_s: float) -> dict[str, float]:
    """Of the tokens served after the warm-up."""
    served = {tenant: load.served(tenant, WARM_S, until_s) for tenant in WEIGHTS}
    return {tenant: tokens / sum(served.values()) for tenant, tokens in served.items()}


def share_error(shares: dict[str, float]) -> float:
    """Of the tenant that is furthest from what its weight gives it, as a part of that."""
    return max(abs(share * sum(WEIGHTS.values()) / WEIGHTS[tenant] - 1) for tenant, share in shares.items())


def quantile(seconds: Sequence[float], part: float) -> float:
    return sorted(seconds)[int(len(seconds) * part)]
