"""How far one pull has come down the ladder of transports, and how long each rung took.

Times are of this process's own clocks; what a rung does is the mover's business.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

_NO_TRANSPORT = "none"


@dataclass(frozen=True, slots=True)
class RungTime:
    """`began_unix_s`: by the wall clock; 0: nothing was tried. `handshake_s`: of `seconds`, those before the first byte
    was asked for: to connect, to claim the lease, to prove that the transport works."""

    began_unix_s: float = 0.0
    seconds: float = 0.0
    handshake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FallenRung:
    """A transport that failed, and another one was tried instead."""

    transport: str
    reason: str
    time: RungTime = field(default=RungTime(), compare=False)


@dataclass(slots=True)
class Climb:
    """`reason`: why the last rung failed, empty while it has not."""

    transport: str = _NO_TRANSPORT
    reason: str = ""
    fallen: list[FallenRung] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)  # when the last rung began
    _asked: float | None = None  # when its first byte was asked for

    def step(self, transport: str) -> None:
        if self.reason:
            self.fallen.append(FallenRung(self.transport, self.reason, self.time))
            self._since, self._asked = time.monotonic(), None
        self.transport, self.reason = transport, ""

    def asks(self) -> None:
        """The last rung asks for bytes: from now on it transfers."""
        if self._asked is None:
            self._asked = time.monotonic()

    @property
    def time(self) -> RungTime:
        """Of the last rung, up to now."""
        now = time.monotonic()
        seconds = now - self._since
        return RungTime(time.time() - seconds, seconds, (self._asked or now) - self._since)
