"""The circuit of one transport to one peer: when it is used, when it is probed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kv_transfer.circuit import Circuit, Circuits, CircuitState, CircuitTimes

TIMES = CircuitTimes(open_s=5.0, most_s=60.0)


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit(TIMES)
    circuit.failed(now)
    return circuit


def test_a_transport_that_failed_is_not_used_and_not_probed_before_its_time() -> None:
    circuit = opened()
    assert not circuit.usable
    assert not circuit.take_probe(4.999)
    assert circuit.take_probe(5.0)


def test_a_probe_that_is_answered_closes_the_circuit_and_the_next_failure_starts_anew() -> None:
    circuit = opened()
    circuit.take_probe(5.0)
    circuit.probed(False, 5.0)
    circuit.take_probe(15.0)
    circuit.probed(True, 15.0)
    assert circuit.usable
    circuit.failed(20.0)
    assert circuit.until == 25.0


def test_each_probe_that_fails_doubles_the_time_up_to_the_most() -> None:
    circuit, waited = opened(), []
    for _ in range(6):
        now = circuit.until
        assert circuit.take_probe(now)
        circuit.probed(False, now)
        waited.append(circuit.until - now)
    assert waited == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def test_reads_that_fail_late_do_not_prolong_the_time() -> None:
    circuit = opened()
    circuit.failed(4.0)
    assert circuit.until == 5.0
    circuit.take_probe(5.0)
    circuit.failed(5.5)
    assert circuit.state is CircuitState.PROBING


class CircuitMachine(RuleBasedStateMachine):
    """Several pulls and probers at once, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit(TIMES)
        self.now = 0.0
        self.probing = False

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def read_fails(self) -> None:
        self.circuit.failed(self.now)
        assert not self.circuit.usable

    @rule()
    def someone_wants_to_probe(self) -> None:
        early = self.now < self.circuit.until
        if self.circuit.take_probe(self.now):
            assert not self.probing, "two probes at once"
            assert not early, "probed before its time"
            self.probing = True

    @precondition(lambda self: self.probing)
    @rule(answered=st.booleans())
    def probe_ends(self, answered: bool) -> None:
        self.circuit.probed(answered, self.now)
        self.probing = False
        assert self.circuit.usable == answered

    @invariant()
    def is_used_only_while_nothing_has_failed(self) -> None:
        assert self.circuit.usable == (self.circuit.state is CircuitState.CLOSED)
        assert self.probing == (self.circuit.state is CircuitState.PROBING)

    @invariant()
    def is_probed_again_in_the_end(self) -> None:
        if self.circuit.state is CircuitState.OPEN:
            assert self.circuit.until <= self.now + TIMES.most_s


TestCircuitMachine = CircuitMachine.TestCase


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["nixl", "grpc"]))))
def test_what_fails_with_one_peer_says_nothing_of_another(failures: list[tuple[str, str]]) -> None:
    circuits = Circuits(TIMES)
    for peer, transport in failures:
        circuits.failed(peer, transport, 0.0)
    for peer in "ab":
        for transport in ("nixl", "grpc"):
            assert circuits.usable(peer, transport) == ((peer, transport) not in failures)


def test_circuits_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.circuit._MOST_KEPT", 3)
    circuits = Circuits(TIMES)
    for peer in range(5):
        circuits.failed(peer, "nixl", float(peer))
    assert [circuits.usable(peer, "nixl") for peer in range(5)] == [True, True, False, False, False]
