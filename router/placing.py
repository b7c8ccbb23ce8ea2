"""Placement as a router uses it: told of workers and attempts as they come and go, it keeps loads, index and latencies.

Owns the hashing of prompts and the one reservation of each live attempt. It must not know links, pipelines or clients.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from cluster.block_hashes import chain_seed, extend_chain
from cluster.config import Config
from cluster.config_placement import LatencyStart, PlacementConfig
from cluster.engine import EngineRequest, Leg, PromptOrigin, Role
from cluster.latency_model import Rows, Seconds
from cluster.latency_start import first_guess
from cluster.store import NOTHING, Reserved
from cluster.wire import role_from_wire
from protos.baton.v1 import worker_pb2
from router.arrivals import Arrivals
from router.attempt_timing import AttemptTiming
from router.decision import Decision
from router.fleet_events import FleetEvents
from router.generation import GenerationRequest
from router.predicted_placement import BlockShape, Demand, Placement
from router.request_choices import RequestChoices
from router.seen import Seen
from router.session_pins import Pins
from router.shared_loads import ALONE, SharedLoads
from router.slow_workers import SlowWorkers
from router.worker_circuits import CircuitRules, WorkerCircuits
from router.worker_loads import Load, WorkerFacts

logger = logging.getLogger(__name__)

_SWEEPS_AT_ONCE = 4
_TYPICAL_PROMPT = 512.0  # tokens; what a prompt takes beside its tokens is shared among so many
_LEAST_S = 1e-7


@dataclass(frozen=True, slots=True)
class PlacementSetup:
    """What placement must know of the cluster. `model`: the served name, part of every block's name. `cache_bytes`: of
    one worker's KV cache. `prefill_may_decode`: whether a prefill worker stands in where no decode worker is left.
    `starts`: what is assumed of each pool before it is measured. `block_bytes`: of a block's KV, where that is known
    better than from the cache's size."""

    config: PlacementConfig
    model: str
    block_tokens: int
    cache_bytes: int
    prefill_may_decode: bool = True
    starts: Mapping[str, LatencyStart] = field(default_factory=dict)
    block_bytes: int | None = None

    @classmethod
    def of(cls, config: Config) -> PlacementSetup:
        """Raises `ConfigError` where the engine's profile is none, or is another model's."""
        engine, guess = config.engine, first_guess(config)
        return cls(
            config.placement,
            config.model.served_name,
            engine.block_size,
            engine.kv_cache_mib << 20,
            config.router.prefill_may_decode,
            {role.value: start for role, start in guess.starts.items()},
            guess.block_bytes if engine.device == "gpu" else None,  # vLLM sizes a GPU's cache itself
        )


class Placing:
    """`now` gives seconds of a monotonic clock; `seed` makes the draws between equals repeatable. `shared`: what
    routers tell each other of their reservations; `pins`: of their sessions. `events`: where it is told that a worker
    is left alone."""

    def __init__(
        self,
        setup: PlacementSetup,
        now: Callable[[], float],
        seed: int,
        shared: SharedLoads = ALONE,
        pins: Pins | None = None,
        events: FleetEvents | None = None,
    ) -> None:
        self._events = events or FleetEvents()
        self._shared = shared
        self._setup = setup
        self._now = now
        self._draw = random.Random(seed)
        self.arrivals = Arrivals()
        config = setup.config
        block = BlockShape(setup.block_tokens, setup.block_bytes or 1)
        self.placement = Placement(config, block, pins, setup.prefill_may_decode, setup.starts)
        self._slow = SlowWorkers(config.slow)
        self._timing = AttemptTiming(self.placement, self._slow)
        self._circuits = WorkerCircuits(CircuitRules(config.circuit_after, config.circuit_s, config.circuit_most_s))

    # Workers: unknown ids are no error

    def worker_up(self, worker: worker_pb2.WorkerDescription) -> None:
        """Raises `InvalidRequest` for a role that is not a pool's."""
        role = role_from_wire(worker.role)
        self.placement.worker_up(WorkerFacts(worker.worker_id, role, worker.num_blocks))
        self._slow.add(worker.worker_id, role.value)
        if worker.num_blocks and self._setup.block_bytes is None:
            size_bytes = self._setup.cache_bytes // worker.num_blocks
            self.placement.block = BlockShape(self._setup.block_tokens, size_bytes)
        self.report(worker.worker_id, worker.load, worker.num_blocks)

    def worker_gone(self, worker_id: str) -> None:
        self._circuits.worked(worker_id)
        self._slow.remove(worker_id)
        self.placement.worker_gone(worker_id)
        self._shared.reserve(worker_id, NOTHING)

    def set_ready(self, worker_id: str, ready: bool) -> None:
        self.placement.loads.set_ready(worker_id, ready)
        self._slow.set_ready(worker_id, ready)

    def report(self, worker_id: str, load: worker_pb2.Load, num_blocks: int) -> None:
        told = Load(load.queued_prefill_tokens, load.running + load.waiting, load.kv_usage * num_blocks)
        self.placement.loads.report(worker_id, told)

    # Requests and their attempts

    def choices(self, request: GenerationRequest) -> RequestChoices:
        """All of one request: its prompt's blocks are named once for them, and not at all if it is refused before."""

        def describe() -> Demand:
            seed = chain_seed(self._setup.model, "", request.cache_salt)
            prompt = request.prompt_token_ids
            hashes = extend_chain(seed, prompt, self._setup.block_tokens)
            return Demand(hashes, len(prompt), request.sampling.max_tokens, session=request.session_id)

        return RequestChoices(self.placement, describe, self._now, self._draw)

    def take(self, request: EngineRequest, choices: RequestChoices, decision: Decision) -> None:
        """The attempt is about to be sent where it was decided."""
        now, chosen = self._now(), decision.chosen
        prompt = len(request.prompt_token_ids)
        if request.leg in (Leg.PREFILL, Leg.WHOLE):
            self.arrivals.placed(prompt, chosen.cached_tokens)
        self._timing.submitted(
            request.attempt_id, request.leg, chosen.worker_id, choices.source, prompt, chosen.cached_tokens, now
        )
        self.placement.take(request.attempt_id, choices.demand, decision, now)
        self._tell(chosen.worker_id)

    def answered(self, attempt_id: str, tokens: int, origin: PromptOrigin | None) -> None:
        """To be called for every output, so that it does little after the first."""
        now = self._now()
        if self.placement.loads.computed(attempt_id, now):
            self._tell(self.placement.loads.worker_of(attempt_id))
        self._timing.output(attempt_id, tokens, origin, now)

    def settle(self, attempt_id: str) -> None:
        worker_id = self.placement.loads.worker_of(attempt_id)
        self.placement.loads.settle(attempt_id)
        self._tell(worker_id)
        self._timing.settled(attempt_id, self._now())

    def failed(self, worker_id: str, request_id: str) -> None:
        """An attempt failed there, by the worker's fault as far as is known."""
        if self.placement.loads.row(worker_id) is None:
            return
        until = self._circuits.failed(worker_id, request_id, self._now())
        if until is not None:
            logger.warning("worker %s fails every request: it gets none for a while", worker_id)
            self._events.add(Seen.FAILING, worker_id, "it fails every request: it gets none for a while")
            self.placement.loads.close_until(worker_id, until)

    def worked(self, worker_id: str) -> None:
        self._circuits.worked(worker_id)

    def tokens_within(self, seconds: float) -> float:
        """So many prompt tokens do the workers for prompts compute in that time, less what other routers have there.
        Without a worker there is nothing to go by: inf."""
        now, loads = self._now(), self.placement.loads
        for role in (Role.PREFILL, Role.DECODE):
            rows = loads.usable(role, frozenset(), now)
            if len(rows):
                return max(0.0, float(np.sum(seconds / self.prompt_token_s(rows))) - loads.foreign_tokens(rows))
        return float("inf")

    def prompt_token_s(self, rows: Rows) -> Seconds:
        """What each of these workers takes for a prompt token, in a prompt of usual length."""
        latency, typical = self.placement.latency, np.full(len(rows), _TYPICAL_PROMPT)
        each_s = (latency.asking_s(rows) + latency.compute_s(rows, typical, typical)) / _TYPICAL_PROMPT
        seconds: Seconds = np.maximum(each_s, _LEAST_S)
        return seconds

    @property
    def slow_workers(self) -> int:
        """How often one was left alone for being slow."""
        return self._slow.left_alone

    # Time

    def on_time(self) -> None:
        """Old guesses go, and what takes memory for nothing; what other routers reserved is heard. To be called a few
        times a second."""
        for worker_id in filter(None, self.placement.loads.names):
            elsewhere = self._shared.reserved_elsewhere(worker_id)
            self.placement.loads.hear_of_others(worker_id, elsewhere.tokens, elsewhere.sequences)
        for slow in self._slow.on_time(self._now()):
            logger.warning("worker %s is slow and gets nothing new for a while: %s", slow.worker_id, slow.reason)
            self._events.add(Seen.SLOW, slow.worker_id, slow.reason)
            self.placement.loads.close_until(slow.worker_id, slow.until)
        self.placement.latency.on_time(self._now())
        self.placement.index.on_time(self._now())
        for _ in range(_SWEEPS_AT_ONCE):
            if not self.placement.index.sweep():
                break

    def check_integrity(self, attempts: Collection[str]) -> None:
        """Raises AssertionError where what is reserved is not what the live attempts need."""
        self.placement.loads.check_integrity()
        assert self.placement.loads.reserved == set(attempts), (self.placement.loads.reserved, set(attempts))
        assert len(self._timing) <= len(attempts)

    def _tell(self, worker_id: str) -> None:
        if worker_id:
            own = self.placement.loads.own(worker_id)
            self._shared.reserve(worker_id, Reserved(round(own.prefill_tokens), round(own.sequences)))
