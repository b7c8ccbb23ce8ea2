"""A hundred requests over two real engines with random faults: each token is what one engine says, nothing is left."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from cluster.kv_link import KvStats
from kv_transfer.ladder import LadderRules
from kv_transfer.ticket import seal, unseal
from tests.kv_transfer.engine_process import BLOCK_SIZE, SECRET, EngineProcess, Generated
from tests.kv_transfer.faulty_front import FaultyFront
from tests.kv_transfer.soak import TRANSFER, draw_plan, longest_pull_s

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

ROUNDS, AT_ONCE, OUTPUT = 20, 5, 8
LEASE_S = 4.0
_COMPUTING_S = 15.0  # for the tokens of one round, prompts and all, where others compute, too


@dataclass(frozen=True)
class Asked:
    ids: list[int]
    first: Generated
    ticket: bytes


class Faults:
    """Two real engines, and the ways from one to the other."""

    def __init__(self, prefill: EngineProcess, decode: EngineProcess, seed: int) -> None:
        self.prefill = prefill
        self.decode = decode
        self.front, self.grpc_front = FaultyFront(), FaultyFront()
        self.grpc_front.spoil_nixl = True
        self._draw = random.Random(seed)
        self._shared = self._ids(4 * BLOCK_SIZE)

    def round(self) -> list[tuple[Asked, Generated]]:
        """Several requests at once: prefilled, then their tickets spoilt, then decoded while prefill may be away."""
        asked = [self._spoilt(ids, first) for ids, first in self._prefilled()]
        if self._draw.random() < 0.1:
            self.prefill.ask("let_leases_expire")
        requests = [([*a.ids, *a.first.tokens], OUTPUT - 1, {"ticket": a.ticket}) for a in asked]
        with self._prefill_away():
            began = time.monotonic()
            rests: list[Generated] = self.decode.ask("generate_many", requests)
        rules = LadderRules.of(KvTransferConfig.model_validate(TRANSFER))
        assert time.monotonic() - began < longest_pull_s(rules) + _COMPUTING_S
        return list(zip(asked, rests, strict=True))

    def abort(self) -> None:
        """One more request, which goes away while its blocks are on the way."""
        ids = self._ids(300)
        first = self.prefill.prefill(ids)
        self.prefill.signal(signal.SIGSTOP)
        try:
            self.decode.ask("abort_while_pulling", [*ids, *first.tokens], first.ticket)
        finally:
            self.prefill.signal(signal.SIGCONT)

    def close(self) -> None:
        for front in (self.front, self.grpc_front):
            front.close()

    def _prefilled(self) -> list[tuple[list[int], Generated]]:
        prompts = [self._ids(self._draw.choice([1, 32, 33, 95, 300, 700])) for _ in range(AT_ONCE)]
        prompts = [self._shared + ids if self._draw.random() < 0.3 else ids for ids in prompts]
        firsts = self.prefill.ask("generate_many", [(ids, 1, {"export": True}) for ids in prompts])
        return list(zip(prompts, firsts, strict=True))

    def _spoilt(self, ids: list[int], first: Generated) -> Asked:
        ticket, event = unseal(first.ticket, SECRET, BLOCK_SIZE), self._draw.random()
        if event < 0.2:
            return Asked(ids, first, first.ticket)
        if event < 0.25:
            return Asked(ids, first, first.ticket[:-1] + bytes((first.ticket[-1] ^ 1,)))
        if event < 0.3:
            return Asked(ids, first, seal(replace(ticket, epoch=ticket.epoch + 1), SECRET))
        front = self._draw.choice([self.front, self.grpc_front, self.grpc_front])
        front.aim(ticket.source)
        front.plan(ticket.lease_id, draw_plan(self._draw))
        return Asked(ids, first, seal(replace(ticket, source=front.address), SECRET))

    @contextmanager
    def _prefill_away(self) -> Iterator[None]:
        """Perhaps, for a while, and back at the end of the block in any case."""
        if self._draw.random() > 0.3:
            yield
            return
        stop_s = self._draw.uniform(0, 0.1)
        back_s = stop_s + self._draw.choice([0.05, 0.5, 2.0])
        timers = [
            threading.Timer(after_s, self.prefill.signal, (number,))
            for after_s, number in ((stop_s, signal.SIGSTOP), (back_s, signal.SIGCONT))
        ]
        for timer in timers:
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.join()

    def _ids(self, length: int) -> list[int]:
        return [self._draw.randrange(4, 4096) for _ in range(length)]


@pytest.fixture(scope="module")
def engines(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EngineProcess]]:
    folder = tmp_path_factory.mktemp("engines")
    made = [
        EngineProcess(demo_model, role, f"{role.value}-0", folder, lease_s=LEASE_S, **TRANSFER)
        for role in (Role.PREFILL, Role.DECODE)
    ]
    try:
        for engine in made:
            engine.wait_until_ready()
        yield made
    finally:
        for engine in made:
            engine.kill()


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


@pytest.fixture
def faults(engines: list[EngineProcess], seed: int) -> Iterator[Faults]:
    made = Faults(engines[0], engines[1], seed)
    yield made
    made.close()


def test_a_hundred_requests_with_random_faults_say_what_one_engine_says_and_leave_nothing(
    faults: Faults, seed: int
) -> None:
    print(f"seed {seed}")  # shown when the test fails
    wrong: list[list[int]] = []
    for number in range(ROUNDS):
        for asked, rest in faults.round():
            tokens = asked.first.tokens + rest.tokens
            wrong += [asked.ids] if tokens != faults.decode.alone(asked.ids, OUTPUT) else []
        if number % 5 == 4:
            faults.abort()
    decode = faults.decode.stats()
    print(decode, faults.front.done, faults.grpc_front.done)
    assert wrong == []
    outcomes = {(t.transport, t.outcome) for t in decode.transfers}
    assert {("nixl", "landed"), ("grpc", "landed"), ("grpc", "failed"), ("none", "refused")} <= outcomes
    assert decode.recomputed_requests > 0
    prefill = _without_leases(faults.prefill)
    for stats in (prefill, decode):
        assert (stats.leases, stats.pinned_blocks, stats.pending_releases) == (0, 0, 0)
    for engine in (faults.prefill, faults.decode):
        engine.ask("check_idle")


def _without_leases(prefill: EngineProcess) -> KvStats:
    """Once those that nobody could release have ended by themselves."""
    give_up = time.monotonic() + 2 * LEASE_S + 5
    while (stats := prefill.stats()).leases:
        assert time.monotonic() < give_up, stats
    return stats
