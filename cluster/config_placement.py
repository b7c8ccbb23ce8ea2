"""Section `placement`: where requests go, and what is assumed of workers before anything is measured.

Only values and their checks; `router/predicted_placement.py` gives them their meaning.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config_section import Count, Seconds, Section, Share

_NotNegative = Annotated[float, Field(ge=0)]


class LatencyStart(Section):
    """Costs assumed of every worker until its own are measured; they come before the cost model's. A prefill takes
    `prefill_s`, and `prefill_token_s` for each token computed; a token of output takes `step_s`, and `step_sequence_s`
    for each sequence running beside it; a transfer takes `transfer_s`, and its bytes at `transfer_mib_per_s`."""

    prefill_s: _NotNegative = 0.01
    prefill_token_s: _NotNegative = 0.0001
    step_s: _NotNegative = 0.01
    step_sequence_s: _NotNegative = 0.0002
    transfer_s: _NotNegative = 0.005
    transfer_mib_per_s: Annotated[float, Field(gt=0)] = 512.0


class SlowWorkersConfig(Section):
    """A worker that takes `factor` times as long as its pool usually does for the same work, and `floor_s` longer, gets
    nothing new for `leave_s`; twice as long each time that it is still so, at most `leave_most_s`. Judged by the median
    of its last prefills, or of its last times between tokens, at least `least` of them. No more than `share` of a pool
    is left alone at once."""

    factor: Annotated[float, Field(gt=1)] = 5.0
    floor_s: _NotNegative = 0.05
    least: Annotated[int, Field(ge=3, le=1000)] = 16
    leave_s: Seconds = 10.0
    leave_most_s: Seconds = 300.0
    share: Annotated[float, Field(ge=0, lt=1)] = 0.34

    @model_validator(mode="after")
    def _doubling_can_begin(self) -> Self:
        if self.leave_most_s < self.leave_s:
            raise ValueError(f"leave_most_s {self.leave_most_s:g} is below leave_s {self.leave_s:g}")
        return self


class PlacementConfig(Section):
    """`pick`: the worker with the least predicted time; or, to compare with, the one whose turn it is, or any.

    `disaggregate`: prefill apart from decode always, never, or where it is predicted to pay. A second that a running
    stream stalls for a prefill beside it weighs `stream_harm` seconds of waiting for a first token.

    What a prompt takes of a full cache is taken from others, who may come back for it: a second of computing it there
    weighs `eviction_weight` seconds more, and less where the cache is less full.

    `index_blocks` bounds the prefix index; a prompt just sent to a worker counts as held there for `guess_s`, and up to
    twice as long. A session stays with its worker at a cost of up to `affinity_share` of the best predicted time, and
    no more than `affinity_most_s`. A router alone remembers the workers of `pins` sessions, each for `pin_s` after its
    last request; with a shared store its `max_pins` and `pin_s` count instead.

    What was measured `half_life_s` ago counts half. A worker that failed `circuit_after` requests in a row gets none
    for `circuit_s`, and at most `circuit_most_s` while it goes on failing.
    """

    pick: Literal["predicted", "round-robin", "random"] = "predicted"
    disaggregate: Literal["always", "never", "auto"] = "auto"
    stream_harm: Annotated[float, Field(ge=0, le=100)] = 1.0
    eviction_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    expected_output_tokens: Count = 256
    index_blocks: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_000_000
    guess_s: Seconds = 30.0
    affinity_share: Share = 0.1
    affinity_most_s: _NotNegative = 0.5
    pins: Count = 100_000
    pin_s: Seconds = 1_800.0
    half_life_s: Seconds = 60.0
    circuit_after: Count = 3
    circuit_s: Seconds = 1.0
    circuit_most_s: Seconds = 30.0
    slow: SlowWorkersConfig = SlowWorkersConfig()
    start: LatencyStart = LatencyStart()
    profile: str | None = None

    @model_validator(mode="after")
    def _circuit_can_open(self) -> Self:
        if self.circuit_most_s < self.circuit_s:
            raise ValueError(f"circuit_most_s {self.circuit_most_s:g} is below circuit_s {self.circuit_s:g}")
        return self
