"""What placement may assume of workers before anything is measured, from what they should cost.

A step's cost is a curve; what placement starts from is a straight line. It is drawn through the amounts that count
most: long prompts, and from few to many sequences.
"""

from __future__ import annotations

from cluster.config_placement import LatencyStart
from cluster.cost_model import CostModel

_SHORT_TOKENS, _LONG_TOKENS = 2_048, 8_192
_FEW, _MANY = 8, 64
_MIB = 1 << 20


def cold_start(prefill: CostModel, decode: CostModel, context: float, network: float, setup_s: float) -> LatencyStart:
    """`context`: tokens of a usual sequence while it decodes. `network`: bytes a second between two workers; `setup_s`:
    seconds that a transfer takes however small it is."""
    short, long = prefill.prefill_s(_SHORT_TOKENS), prefill.prefill_s(_LONG_TOKENS)
    token_s = (long - short) / (_LONG_TOKENS - _SHORT_TOKENS)
    few, many = decode.decode_s(_FEW, context), decode.decode_s(_MANY, context)
    sequence_s = (many - few) / (_MANY - _FEW)
    return LatencyStart(
        prefill_s=max(short - _SHORT_TOKENS * token_s, 0.0),
        prefill_token_s=token_s,
        step_s=max(few - _FEW * sequence_s, 0.0),
        step_sequence_s=sequence_s,
        transfer_s=setup_s,
        transfer_mib_per_s=network / _MIB,
    )
