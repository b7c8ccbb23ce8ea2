"""How long prompts and steps take in one engine, for every prompt length and number of sequences of a workload.

Computed once for each engine and chunk size, then used for every number of replicas. Knows nothing of waiting.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean

from cluster.cost_model import CostModel
from cluster.step_work import Chunk, Step
from deploy.planning.workload import Workload

MOST_SEQUENCES = 1_024
_SELDOM_FULL = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, slots=True)
class PromptTimes:
    """Seconds for each prompt length of the workload, where a step computes at most `chunk` prompt tokens. `alone_s`:
    from its start to its first token, no other prompt in its steps; `crowded_s`: the same where others fill its last
    step; `share_s`: what it takes of the engine's time. `chunks`: steps that it takes part in; `filled`: how many full
    ones its tokens make."""

    chunk: int
    alone_s: tuple[float, ...]
    crowded_s: tuple[float, ...]
    share_s: tuple[float, ...]
    chunks: tuple[float, ...]
    filled: tuple[float, ...]

    @property
    def mean_share_s(self) -> float:
        return fmean(self.share_s)

    def slower(self, step_s: float, wait_s: float) -> PromptTimes:
        """Where each step takes `step_s` longer, and a prompt waits `wait_s` for the step that runs when it comes."""
        return PromptTimes(
            self.chunk,
            tuple(each + wait_s + steps * step_s for each, steps in zip(self.alone_s, self.chunks, strict=True)),
            tuple(each + wait_s + steps * step_s for each, steps in zip(self.crowded_s, self.chunks, strict=True)),
            tuple(each + steps * step_s for each, steps in zip(self.share_s, self.filled, strict=True)),
            self.chunks,
            self.filled,
        )


def prompt_times(engine: CostModel, workload: Workload, chunk: int) -> PromptTimes:
    @cache  # prompts without cached prefixes share their first chunks
    def step_s(part: Chunk) -> float:
        return engine.step(Step(part)).seconds

    times = [_prompt_time(step_s, workload, prompt, chunk) for prompt in workload.prompts]
    alone, crowded, share, chunks, filled = zip(*times, strict=True)
    return PromptTimes(chunk, alone, crowded, share, chunks, filled)


def _prompt_time(
    step_s: Callable[[Chunk], float], workload: Workload, prompt: float, chunk: int
) -> tuple[float, float, float, float, float]:
    computed = workload.computed(prompt)
    cached = prompt - computed
    whole = math.ceil(computed / chunk) - 1
    before = sum(step_s(Chunk(float(chunk), cached + at * chunk)) for at in range(whole))
    rest, context = computed - whole * chunk, cached + whole * chunk
    together = chunk / rest
    alone, crowded = step_s(Chunk(rest, context)), step_s(Chunk(rest, context, together))
    return before + alone, before + crowded, before + crowded / together, whole + 1.0, computed / chunk


def most_sequences(engine: CostModel, workload: Workload) -> int:
    """How many sequences fit into the KV cache but for 1 % of the time; 0 where the longest request does not.

    Sizes of n random sequences add up to about a normal distribution around n times their mean.
    """
    room = engine.kv_room_each
    if engine.kv_bytes_each(workload.longest) > room:
        return 0
    each = engine.kv_bytes_each(workload.context)
    spread = _SELDOM_FULL * workload.context_spread * each / max(workload.context, 1.0)
    # n * each + sqrt(n) * spread = room, solved for sqrt(n).
    root = (math.sqrt(spread * spread + 4.0 * each * room) - spread) / (2.0 * each)
    return min(max(int(root * root), 1), MOST_SEQUENCES)


def step_times(engine: CostModel, workload: Workload, most: int, chunk: int = 0) -> tuple[float, ...]:
    """Seconds of a step of 0 to `most` sequences, beside `chunk` tokens of a usual prompt. Between the points where it
    is computed it is taken as straight."""
    points = _points(most)
    prompt = Chunk(float(chunk), _usual_context(workload, chunk))
    at = [engine.step(Step(prompt, float(count), workload.context)).seconds for count in points]
    return tuple(_between(points, at, count) for count in range(most + 1))


def _usual_context(workload: Workload, chunk: int) -> float:
    """Tokens before a chunk, on average over all chunks."""
    computed = [workload.computed(prompt) for prompt in workload.prompts]
    middles = (part * (prompt - part / 2.0) for prompt, part in zip(workload.prompts, computed, strict=True))
    return max(sum(middles) / sum(computed) - chunk / 2.0, 0.0)


def _points(most: int) -> list[int]:
    """0, 1, 2, 3 … and then each about an eighth above the one before, up to `most`."""
    points = [0]
    while points[-1] < most:
        points.append(min(max(points[-1] + 1, points[-1] * 9 // 8), most))
    return points


def _between(points: list[int], values: list[float], count: int) -> float:
    at = bisect.bisect_left(points, count)
    if points[at] == count:
        return values[at]
    low, high = points[at - 1], points[at]
    return values[at - 1] + (values[at] - values[at - 1]) * (count - low) / (high - low)
