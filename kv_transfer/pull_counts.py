"""What became of an engine's pulls, by transport and outcome."""

from __future__ import annotations

from collections import Counter, defaultdict

from cluster.engine import TransferCount
from kv_transfer.mover import PullResult

# Of the pulls and blocks that landed, those that did while their prompt was still being computed.
AHEAD = "ahead"
LANDED = "landed"


class PullCounts:
    """Written by one thread; may be read by others."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._blocks: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, result: PullResult, whole_pull: bool = True) -> None:
        """Also every transport that failed before the last one. `whole_pull`: False for a further rank of a pull that
        is counted already, which adds only its bytes."""
        key = (result.transport, result.outcome)
        self._bytes[key] += result.bytes
        if whole_pull:
            self._blocks[key] += result.blocks
            self._counts[key] += 1
            self._seconds[key] += result.time.seconds
            for rung in result.fallen:
                self._counts[rung.transport, "failed"] += 1
                self._seconds[rung.transport, "failed"] += rung.time.seconds
        if whole_pull and result.ahead:
            self._blocks[result.transport, AHEAD] += result.ahead
            self._counts[result.transport, AHEAD] += 1

    @property
    def transfers(self) -> tuple[TransferCount, ...]:
        return tuple(
            TransferCount(*key, count, self._blocks[key], self._bytes[key], self._seconds.get(key, 0.0))
            for key, count in sorted(self._counts.copy().items())
        )
