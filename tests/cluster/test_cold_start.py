"""What placement starts from, against the costs that it stands for."""

from __future__ import annotations

import pytest

from cluster.cold_start import cold_start
from cluster.cost_model import CostModel
from cluster.hardware import hardware
from cluster.model_config import model_shape


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_the_straight_lines_are_near_the_costs_that_they_stand_for(name: str) -> None:
    engine = CostModel(model_shape(name), hardware("h100"))
    start = cold_start(engine, engine, 2_000, 10e9, 0.005)
    for tokens in (2_000, 4_000, 8_000):
        line = start.prefill_s + tokens * start.prefill_token_s
        assert line == pytest.approx(engine.prefill_s(tokens), rel=0.3)
    for sequences in (16, 64):
        line = start.step_s + sequences * start.step_sequence_s
        assert line == pytest.approx(engine.decode_s(sequences, 2_000), rel=0.3)


def test_the_network_is_given_in_the_units_of_the_configuration() -> None:
    engine = CostModel(model_shape("llama-3.1-8b"), hardware("h100"))
    start = cold_start(engine, engine, 2_000, 512 * 2**20, 0.005)
    assert (start.transfer_mib_per_s, start.transfer_s) == (512.0, 0.005)
