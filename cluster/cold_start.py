"""What placement may assume of workers before anything is measured, from what they should cost.

A step's cost is a curve; what placement starts from is a straight line. It is drawn through the amounts that count
most: for a plan, which knows its load, long prompts and from few to many sequences; who knows less names others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.config_placement import LatencyStart
from cluster.cost_model import CostModel

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the lines begin and end: `prompts` in tokens of one step, `sequences` of one step."""

    prompts: tuple[int, int] = (2_048, 8_192)
    sequences: tuple[int, int] = (8, 64)


_PLANNED = Ends()


def cold_start(
    prefill: CostModel,
    decode: CostModel,
    context: float,
    network: float,
    setup_s: float,
    ends: Ends = _PLANNED,
    edge_s: float = 0.0,
) -> LatencyStart:
    """`context`: tokens of a usual sequence while it decodes. `network`: bytes a second between two workers; `setup_s`:
    seconds that a transfer takes however small it is. `edge_s`: what a request spends outside of the engine."""
    prefill_s, prefill_token_s = _line(prefill.prefill_s, ends.prompts)
    step_s, step_sequence_s = _line(lambda running: decode.decode_s(running, context), ends.sequences)
    return LatencyStart(
        prefill_s=edge_s + prefill_s,
        prefill_token_s=prefill_token_s,
        step_s=step_s,
        step_sequence_s=step_sequence_s,
        transfer_s=setup_s,
        transfer_mib_per_s=network / _MIB,
    )


def _line(seconds: Callable[[float], float], ends: tuple[int, int]) -> tuple[float, float]:
    """Seconds once, not below 0, and for each, through the curve at both ends."""
    few, many = ends
    each = (seconds(many) - seconds(few)) / (many - few)
    return max(seconds(few) - few * each, 0.0), each
