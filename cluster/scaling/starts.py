"""What workers that were ordered, and are not there yet, will work off: nobody is to be ordered for that again.

    ordered ──── starts: owes what it would have computed ────▶ there: makes up for it ────▶ all is worked off

The rest of the backlog is what would wait if everybody came at once, so slow starts lead to no other size than quick
ones. Pure. It must not know why workers were ordered, nor how many should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST_SPARE = 0.1
"""Of their speed workers are taken to have for what they owe, however much arrives."""


@dataclass(frozen=True, slots=True)
class Look:
    """Of one pool now. `ordered` workers are wanted, and so many are `ready`; `tokens_per_s`: of one. What they have of
    it beyond `arriving_per_s` tokens is for what they owe. Who has not come `patience_s` after the last order is not
    reckoned on."""

    ordered: int
    ready: int
    backlog_tokens: float
    tokens_per_s: float
    arriving_per_s: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Starts:
    """`owed`: tokens of the backlog that are left to ordered workers; so many more are to be worked off `before` those.
    Clock times: `at` of the last look, `short_since` of the last order since which fewer than `ordered` are there;
    None: none was, all are."""

    owed: float = 0.0
    before: float = 0.0
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
            owed = min(self.owed + missing * look.tokens_per_s * passed, look.backlog_tokens)
            before = look.backlog_tokens - owed
        else:
            # What comes now does not stand before it: that is counted as ever.
            before = self.before - _worked_off(look) * passed
            owed = min(max(0.0, self.owed + min(0.0, before)), look.backlog_tokens)
        return Starts(owed, max(0.0, before), look.ordered, since if missing else None, now)


def _worked_off(look: Look) -> float:
    """Tokens of the backlog a second, by those that are there."""
    speed = look.ready * look.tokens_per_s
    return max(_LEAST_SPARE * speed, speed - look.arriving_per_s)
