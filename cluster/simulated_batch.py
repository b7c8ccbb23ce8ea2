"""Continuous batching of a simulated engine: who waits, who runs, which blocks they hold, and which tokens a step
yields.

Pure state, moved by calls; neither time nor peers. The next token is a function of all tokens before it alone, so an
output is the same wherever a request continues. There is no end-of-sequence token: an output ends by `max_tokens` or
by one of the request's stop tokens.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import xxhash

from cluster.block_hashes import BlockChain, chain_seed
from cluster.config import SimulatedTiming
from cluster.engine import EngineOutput, EngineRequest, FinishReason, Leg, PromptOrigin, TokenLogprobs
from cluster.simulated_blocks import BlockPool


class _Stage(Enum):
    WAITING = "waiting"
    PULLING = "pulling"
    RUNNING = "running"


@dataclass(slots=True)
class _Attempt:
    request: EngineRequest
    tokens: list[int]
    chain: BlockChain  # over all its tokens, whose hashes name its full blocks
    history: xxhash.xxh3_64  # over all its tokens
    stage: _Stage = _Stage.WAITING
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    pulled: int = 0
    handed_over: int = 0  # prompt tokens that the ticket brings; 0 when there is none to use
    remembered: int = 0  # full blocks that the pool knows already

    @property
    def produced(self) -> int:
        return len(self.tokens) - len(self.request.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class Pull:
    """The last `missing_blocks` blocks of the attempt's ticket are to be fetched; with none, its lease is only to
    end."""

    attempt_id: str
    ticket: bytes
    missing_blocks: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A prefill leg that ended: its blocks are still held, once, and now belong to whoever leases them."""

    attempt_id: str
    num_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Who moves in the next step, and how many prompt tokens it computes."""

    attempt_ids: tuple[str, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    outputs: list[EngineOutput]
    to_offer: list[Finished]


class SimulatedBatch:
    def __init__(self, model: str, timing: SimulatedTiming, block_size: int, max_model_len: int) -> None:
        self._model = model
        self._timing = timing
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._pool = BlockPool(timing.num_blocks)
        self._attempts: dict[str, _Attempt] = {}
        self._waiting: deque[_Attempt] = deque()

    @property
    def pool(self) -> BlockPool:
        return self._pool

    @property
    def running(self) -> int:
        return len(self._attempts) - self.waiting

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def __contains__(self, attempt_id: object) -> bool:
        return attempt_id in self._attempts

    def add(self, request: EngineRequest, handed_over: int = 0) -> None:
        """`handed_over`: prompt tokens that the request's ticket brings."""
        tokens = list(request.prompt_token_ids)
        chain = BlockChain(chain_seed(self._model, "", request.cache_salt), self._block_size)
        chain.extend(tokens)
        attempt = _Attempt(request, tokens, chain, _hash(tokens), handed_over=min(handed_over, len(tokens)))
        self._attempts[request.attempt_id] = attempt
        position = next(
            (i for i, other in enumerate(self._waiting) if other.request.priority > request.priority),
            len(self._waiting),
        )
        self._waiting.insert(position, attempt)

    def abort(self, attempt_id: str) -> None:
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is None:
            return
        if attempt.stage is _Stage.WAITING:
            self._waiting.remove(attempt)
        self._pool.release(attempt.blocks)

    def admit(self) -> list[Pull]:
        """Moves waiting attempts into the batch, in order, while there is room; returns the pulls this starts."""
        pulls = []
        while self._waiting and self.running < self._timing.max_running and self._fits(self._waiting[0]):
            attempt = self._waiting.popleft()
            if pull := self._place(attempt):
                pulls.append(pull)
        return pulls

    def landed(self, attempt_id: str, success: bool) -> None:
        """A pull has ended; on failure the attempt computes its prompt itself. Unknown attempts were aborted
        meanwhile."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None or attempt.stage is not _Stage.PULLING:
            return
        if success:
            usable = min(attempt.handed_over, len(attempt.tokens) - 1)
            attempt.pulled = max(0, usable - attempt.computed)
            attempt.computed += attempt.pulled
            self._remember(attempt)
        attempt.stage = _Stage.RUNNING

    def plan_step(self) -> StepPlan | None:
        """None when no attempt can move."""
        ready = self._ready()
        if not ready:
            return None
        tokens = sum(max(0, len(attempt.request.prompt_token_ids) - attempt.computed) for attempt in ready)
        return StepPlan(tuple(attempt.request.attempt_id for attempt in ready), tokens)

    def finish_step(self, plan: StepPlan) -> StepResult:
        """One token for each attempt of the plan that is still there."""
        result = StepResult([], [])
        for attempt_id in plan.attempt_ids:
            attempt = self._attempts.get(attempt_id)
            if attempt is not None and attempt.stage is _Stage.RUNNING and self._make_room(attempt):
                self._advance(attempt, result)
        return result

    def _ready(self) -> list[_Attempt]:
        return [attempt for attempt in self._attempts.values() if attempt.stage is _Stage.RUNNING]

    def _blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self._block_size)

    def _reusable(self, attempt: _Attempt) -> list[int]:
        # The last token is always computed: its output is what the step is for.
        return self._pool.find(attempt.chain.hashes[: (len(attempt.tokens) - 1) // self._block_size])

    def _fits(self, attempt: _Attempt) -> bool:
        known = self._reusable(attempt)
        wanted = self._blocks_for(len(attempt.tokens) + 1) - len(known) + self._pool.free_among(known)
        return wanted <= self._pool.available

    def _place(self, attempt: _Attempt) -> Pull | None:
        known = self._reusable(attempt)
        self._pool.hold(known)
        attempt.blocks = known + self._pool.allocate(self._blocks_for(len(attempt.tokens)) - len(known))
        attempt.computed, attempt.remembered = len(known) * self._block_size, len(known)
        if not attempt.produced:
            attempt.cached = attempt.computed
        if not attempt.handed_over:
            attempt.stage = _Stage.RUNNING
            return None
        missing = max(0, self._blocks_for(attempt.handed_over) - len(known))
        attempt.stage = _Stage.PULLING if missing else _Stage.RUNNING
        return Pull(attempt.request.attempt_id, attempt.request.ticket, missing)

    def _make_room(self, attempt: _Attempt) -> bool:
        """A block for the attempt's next token; when none is free the youngest attempt gives way, maybe this one."""
        while self._blocks_for(len(attempt.tokens) + 1) > len(attempt.blocks):
            if self._pool.available:
                attempt.blocks += self._pool.allocate(1)
            else:
                youngest = self._ready()[-1]
                self._preempt(youngest)
                if youngest is attempt:
                    return False
        return True

    def _preempt(self, attempt: _Attempt) -> None:
        self._pool.release(attempt.blocks)
        attempt.blocks, attempt.computed, attempt.stage = [], 0, _Stage.WAITING
        attempt.handed_over = 0  # the ticket is used up
        self._waiting.appendleft(attempt)

    def _advance(self, attempt: _Attempt, result: StepResult) -> None:
        first = not attempt.produced
        attempt.computed = len(attempt.tokens)
        self._remember(attempt)
        token = attempt.history.intdigest() % self._timing.vocabulary
        attempt.tokens.append(token)
        attempt.history.update(_bytes([token]))
        attempt.chain.extend([token])
        reason = self._end_of(attempt, token)
        if reason is not None:
            self._finish(attempt, result)
        sampling, prompt = attempt.request.sampling, len(attempt.request.prompt_token_ids)
        result.outputs.append(
            EngineOutput(
                attempt_id=attempt.request.attempt_id,
                token_ids=[token],
                logprobs=() if sampling.logprobs is None else (self._logprobs(token, sampling.logprobs),),
                finish_reason=reason,
                stop_reason=token if reason is FinishReason.STOP else None,
                origin=PromptOrigin(prompt, attempt.cached, attempt.pulled) if first else None,
            )
        )

    def _remember(self, attempt: _Attempt) -> None:
        full = attempt.computed // self._block_size
        for index in range(attempt.remembered, full):
            self._pool.remember(attempt.blocks[index], attempt.chain.hashes[index])
        attempt.remembered = full

    def _end_of(self, attempt: _Attempt, token: int) -> FinishReason | None:
        if token in attempt.request.sampling.stop_token_ids:
            return FinishReason.STOP
        limit = 1 if attempt.request.leg is Leg.PREFILL else attempt.request.sampling.max_tokens
        full = attempt.produced >= limit or len(attempt.tokens) >= self._max_model_len
        return FinishReason.LENGTH if full else None

    def _finish(self, attempt: _Attempt, result: StepResult) -> None:
        del self._attempts[attempt.request.attempt_id]
        if attempt.request.leg is not Leg.PREFILL:
            self._pool.release(attempt.blocks)
            return
        prompt = len(attempt.request.prompt_token_ids)
        leased = self._blocks_for(prompt)
        self._pool.release(attempt.blocks[leased:])
        result.to_offer.append(Finished(attempt.request.attempt_id, prompt, tuple(attempt.blocks[:leased])))

    def _logprobs(self, token: int, alternatives: int) -> TokenLogprobs:
        """The sampled token gets two thirds of the probability, each alternative a third of the one before."""
        vocabulary = self._timing.vocabulary
        ids = (token, token, *((token + i) % vocabulary for i in range(1, alternatives)))[: alternatives + 1]
        values = tuple(math.log(2 / 3) - math.log(3) * max(0, i - 1) for i in range(len(ids)))
        return TokenLogprobs(ids, values, rank=1)


def next_token(tokens: Sequence[int], vocabulary: int) -> int:
    """The simulated model: the same history gives the same token, a different one almost surely another."""
    return _hash(tokens).intdigest() % vocabulary


def _hash(tokens: Sequence[int]) -> xxhash.xxh3_64:
    return xxhash.xxh3_64(_bytes(tokens))


def _bytes(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()
