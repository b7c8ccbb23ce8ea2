"""What workers that were ordered, and are not there yet, will work off: nobody is to be ordered for that again.

    ordered ──── starts: owes what it would have computed ────▶ there: makes up for it ────▶ all is worked off

The rest of the backlog is what would wait if everybody came at once, so slow starts lead to no other size than quick
ones. Pure. It must not know why workers were ordered, nor how many should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST_SPARE = 0.1
"""Of their speed workers have for what they owe, however little the utilisation leaves."""


@dataclass(frozen=True, slots=True)
class Look:
    """Of one pool now. `ordered` workers are wanted, and so many are `ready`; `tokens_per_s`: of one. Of their speed
    they have the share `spare` for what they owe. Who has not come `patience_s` after the last order is not reckoned
    on."""

    ordered: int
    ready: int
    backlog_tokens: float
    tokens_per_s: float
    spare: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Starts:
    """`owed`: tokens of the backlog that are left to ordered workers. Clock times: `at` of the last look, `short_since`
    of the last order since which fewer than `ordered` are there; None: none was, all are."""

    owed: float = 0.0
    ordered: int = 0
    short_since: float | None = None
    at: float | None = None

    def after(self, look: Look, now: float) -> Starts:
        """A look at amounts that are not known changes nothing."""
        if not (math.isfinite(look.backlog_tokens) and math.isfinite(look.tokens_per_s)):
            return self
        passed = 0.0 if self.at is None else now - self.at
        missing = max(0, look.ordered - look.ready)
        since = now if self.short_since is None or look.ordered > self.ordered else self.short_since
        if missing and now - since <= look.patience_s:
            owed = self.owed + missing * look.tokens_per_s * passed
        else:
            owed = self.owed - max(_LEAST_SPARE, look.spare) * look.ready * look.tokens_per_s * passed
        owed = min(max(0.0, owed), look.backlog_tokens)
        return Starts(owed, look.ordered, since if missing else None, now)
