"""Reads recorded requests, one JSON object a line, into a `Workload`.

Of a line: `timestamp` in milliseconds, `input_length` and `output_length` in tokens, and where it is there `hash_ids`,
the ids of the prompt's blocks. It must not know what the workload is for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import ConfigError
from deploy.planning.workload import Workload, likely_values, resident

_WINDOW_MS = 60_000.0


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    timestamp: float = Field(ge=0, allow_inf_nan=False)
    input_length: int = Field(ge=1)
    output_length: int = Field(ge=0)
    hash_ids: list[int] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request; `at_s` seconds after some beginning, lengths in tokens, `blocks` ids of its prompt's blocks."""

    at_s: float
    prompt: int
    output: int
    blocks: tuple[int, ...]


def read_trace(path: Path) -> list[Recorded]:
    """Raises `ConfigError`: a file that cannot be read, or the first line that is no request."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    found = [_recorded(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{path}: holds no request")
    return found


def _recorded(line: str, where: str) -> Recorded:
    try:
        parsed = _Line.model_validate(json.loads(line))
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"])) or "the line"
        raise ConfigError(f"{where}: {key}: {detail['msg']}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    return Recorded(parsed.timestamp / 1_000.0, parsed.input_length, parsed.output_length, tuple(parsed.hash_ids))


def recorded_workload(
    requests: Sequence[Recorded], longest: int, rate: float | None, hit_share: float | None
) -> Workload:
    """What to plan for. `longest`: tokens that the model takes; requests above it are left out. `rate` and `hit_share`
    None: the busiest minute of the trace, and no prompt found in a cache.

    Raises `ConfigError` where no request is left, or the rate cannot be told from the trace.
    """
    kept = [each for each in requests if each.prompt + each.output <= longest]
    if not kept:
        raise ConfigError(f"the trace has no request of at most {longest:,} tokens, which is what the model takes")
    assumed: list[str] = []
    if left_out := len(requests) - len(kept):
        assumed.append(f"{left_out:,} of {len(requests):,} requests are left out: above {longest:,} tokens")
    if rate is None:
        rate, mean = busiest_rate(kept)
        assumed.append(f"rate {rate:.3g}/s: the busiest minute of the trace; its mean is {mean:.3g}/s")
    if hit_share is None:
        hit_share = 0.0
        assumed.append(f"no prompt is found in a cache; with endless caches {hit_ceiling(kept):.1%} of the blocks were")
    pairs = [(float(each.prompt), float(max(each.output, 1))) for each in kept]
    context, spread = resident(pairs)
    return Workload(
        rate=rate,
        prompts=likely_values(prompt for prompt, _ in pairs),
        outputs=likely_values(output for _, output in pairs),
        context=context,
        context_spread=spread,
        longest=max(prompt + output for prompt, output in pairs),
        hit_share=hit_share,
        assumed=tuple(assumed),
    )


def busiest_rate(requests: Sequence[Recorded]) -> tuple[float, float]:
    """Requests a second: in the busiest whole minute, and on average. Raises `ConfigError` for a trace of no length."""
    first = min(each.at_s for each in requests)
    length_s = max(each.at_s for each in requests) - first
    if length_s <= 0:
        raise ConfigError("every request of the trace has one time stamp: say the rate yourself")
    mean = len(requests) / length_s
    minute_s = _WINDOW_MS / 1_000.0
    if length_s < minute_s:
        return mean, mean
    minutes = Counter(int((each.at_s - first) / minute_s) for each in requests)
    whole = int(length_s / minute_s)
    return max(max(minutes[at] for at in range(whole)) / minute_s, mean), mean


def hit_ceiling(requests: Sequence[Recorded]) -> float:
    """The share of blocks that some request before had, were nothing ever forgotten."""
    seen: set[int] = set()
    hits = total = 0
    for each in sorted(requests, key=lambda request: request.at_s):
        total += len(each.blocks)
        hits += sum(block in seen for block in each.blocks)
        seen.update(each.blocks)
    return hits / total if total else 0.0
