"""Ray, started below this process, and once more where its node did not come up.

About once in some hundred starts Ray's node process ends before it has opened its log; nothing is left to tell why.
Ray waits 30 s for it, which cannot be set, and leaves the processes that did start. The next start comes up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from deploy.processes import children, kill_trees

# The only words by which this failure differs from one that a second start would meet again.
NODE_IS_LATE = "current node timed out during startup"
# What one more start takes at the most: Ray's wait, and the processes that it starts before.
_ATTEMPT_S = 45.0


def start_ray(init: Callable[[], object], deadline: float, tell: Callable[[str], None]) -> None:
    """Calls `init`, which calls `ray.init`; again if its node was late, `deadline` (monotonic, s) allowing.

    Raises what Ray raised last: nothing narrower than `Exception` for a late node.
    """
    try:
        return _start_or_leave_nothing(init)
    except Exception as error:
        if NODE_IS_LATE not in str(error) or time.monotonic() + _ATTEMPT_S > deadline:
            raise
    tell("Ray's node did not come up: starting Ray once more")
    _start_or_leave_nothing(init)


def _start_or_leave_nothing(init: Callable[[], object]) -> None:
    before = set(children(os.getpid()))
    try:
        init()
    except Exception:
        kill_trees(set(children(os.getpid())) - before)
        raise
