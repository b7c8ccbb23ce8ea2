"""Which transports to which peers have failed of late, and when each may be tried again. Pure: time is an argument.

    CLOSED ──failed──▶ OPEN ──its time is over, a probe is taken──▶ PROBING ──bytes came──▶ CLOSED
                        ▲                                              │
                        └────────── nothing came: twice as long ───────┘

Only a closed circuit is used. While one probe is under way there is no other, and only its end changes the state. Who
probes, and how, is not known here.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

_MOST_KEPT = 4096


class CircuitState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class CircuitTimes:
    """Seconds: how long a circuit stays open after a failure, and at most after probes that failed; not less."""

    open_s: float
    most_s: float


class Circuit:
    """Of one transport to one peer."""

    def __init__(self, times: CircuitTimes) -> None:
        self._times = times
        self._open_s = times.open_s
        self.state = CircuitState.CLOSED
        self.until = 0.0

    def __repr__(self) -> str:
        return f"<Circuit {self.state.value} until={self.until:g} open_s={self._open_s:g}>"

    @property
    def usable(self) -> bool:
        return self.state is CircuitState.CLOSED

    def failed(self, now: float) -> None:
        """A read, or the first probe, failed. Of no news where the circuit is open already."""
        if self.state is CircuitState.CLOSED:
            self._open_s = self._times.open_s
            self._open(now)

    def take_probe(self, now: float) -> bool:
        """Whether the caller must probe now, and then tell how that ended."""
        if self.state is not CircuitState.OPEN or now < self.until:
            return False
        self.state = CircuitState.PROBING
        return True

    def probed(self, answered: bool, now: float) -> None:
        """The probe that `take_probe` gave away has ended."""
        assert self.state is CircuitState.PROBING, f"{self}: nobody was told to probe"
        if answered:
            self.state = CircuitState.CLOSED
            return
        self._open_s = min(2 * self._open_s, self._times.most_s)
        self._open(now)

    def _open(self, now: float) -> None:
        self.state = CircuitState.OPEN
        self.until = now + self._open_s


class Circuits:
    """Of all peers. A circuit that was never heard of is closed."""

    def __init__(self, times: CircuitTimes) -> None:
        self._times = times
        self._circuits: dict[tuple[Hashable, str], Circuit] = {}

    def __repr__(self) -> str:
        return f"<Circuits {self._circuits}>"

    def usable(self, peer: Hashable, transport: str) -> bool:
        circuit = self._circuits.get((peer, transport))
        return circuit is None or circuit.usable

    def failed(self, peer: Hashable, transport: str, now: float) -> None:
        circuit = self._circuits.setdefault((peer, transport), Circuit(self._times))
        circuit.failed(now)
        if len(self._circuits) > _MOST_KEPT:
            self._forget_the_stalest()

    def take_probe(self, peer: Hashable, transport: str, now: float) -> bool:
        """Whether the caller must probe now, and then tell how that ended."""
        circuit = self._circuits.get((peer, transport))
        return circuit is not None and circuit.take_probe(now)

    def probed(self, peer: Hashable, transport: str, answered: bool, now: float) -> None:
        circuit = self._circuits[peer, transport]
        circuit.probed(answered, now)
        if circuit.usable:
            del self._circuits[peer, transport]

    def _forget_the_stalest(self) -> None:
        idle = [key for key, circuit in self._circuits.items() if circuit.state is CircuitState.OPEN]
        if idle:
            del self._circuits[min(idle, key=lambda key: self._circuits[key].until)]
