"""Which transports are tried for one pull, in which order, and for how long each: pure rules.

Reading and probing are the mover's; what has failed before, the circuits know.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

from cluster.config_transfer import KvTransferConfig, RungConfig
from kv_transfer.circuit import Circuits, CircuitTimes

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LadderRules:
    """`prefer` is tried first, `forbid` never. `rungs` by name of the transport. Times are seconds: `connect_s` is the
    deadline of connecting and of each call to a source, `probe_s` that of a probe."""

    prefer: str
    forbid: frozenset[str]
    rungs: Mapping[str, RungConfig]
    connect_s: float
    probe_s: float
    circuits: CircuitTimes

    @classmethod
    def of(cls, config: KvTransferConfig) -> LadderRules:
        return cls(
            prefer=config.prefer,
            forbid=frozenset(config.forbid),
            rungs={"nixl": config.nixl, "grpc": config.grpc},
            connect_s=config.connect_deadline_s,
            probe_s=config.probe_s,
            circuits=CircuitTimes(config.circuit_open_s, config.circuit_most_s),
        )

    def allowed(self, ours: Iterable[str], theirs: Collection[str]) -> tuple[str, ...]:
        """The transports that both ends offer and that may be used: the preferred one, then as in `ours`."""
        both = [name for name in ours if name in theirs and name not in self.forbid]
        return tuple(sorted(both, key=lambda name: name != self.prefer))

    def reads_at_once(self, transport: str) -> int:
        """So many may share the transport's expected speed, and each keeps its deadline."""
        return int(self.rungs[transport].factor)

    def deadline_s(self, transport: str, size: int) -> float:
        """For a read of `size` bytes."""
        rung = self.rungs[transport]
        expected = size / (rung.mib_per_s * _MIB)
        return max(rung.floor_s, min(expected * rung.factor, rung.ceiling_s))


def choose_rungs(allowed: Iterable[str], circuits: Circuits, peer: Hashable) -> tuple[str, ...]:
    """Those of the allowed transports that have not failed with this peer of late, in the same order. None: nothing is
    worth the wait."""
    return tuple(name for name in allowed if circuits.usable(peer, name))
