"""Tenants under overload, through the whole dispatch: shares follow weights, a flood stays its sender's own trouble."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config_admission import AdmissionConfig
from tests.router.admission_load import Sender
from tests.router.dispatch_load import CAPACITY, ScriptedFleet

pytestmark = pytest.mark.long


def rules(**sections: Any) -> AdmissionConfig:
    return AdmissionConfig.model_validate({"quantum_tokens": 25, "cold_tokens_per_s": 1_000.0, **sections})


def test_shares_are_within_5_percent_of_the_weights_at_three_times_the_capacity() -> None:
    weights = {"gold": 4.0, "silver": 2.0, "iron": 1.0}
    tenants = {name: {"weight": weight} for name, weight in weights.items()}
    senders = [Sender(name, CAPACITY, 50, 150) for name in weights]
    fleet = ScriptedFleet(rules(tenants=tenants, queue={"most_wait_s": 20.0}), senders)
    report = fleet.run(until_s=200.0, count_from_s=20.0)
    for name, weight in weights.items():
        assert report.share(name) == pytest.approx(weight / 7, rel=0.05)
    assert sum(report.served.values()) == pytest.approx(CAPACITY * 180, rel=0.02)  # no seat stood empty


def test_a_flood_does_not_raise_the_p99_ttft_of_another_tenant_by_half() -> None:
    config = rules(queue={"most_wait_s": 10.0, "max_requests": 200})
    quiet = [Sender("victim", 60.0, 10, 30), *(Sender(f"other {n}", 130.0, 50, 150) for n in range(5))]
    flood = Sender("other 0", 2 * CAPACITY, 50, 150)
    before = ScriptedFleet(config, quiet, seed=3).run(until_s=200.0, count_from_s=20.0)
    during = ScriptedFleet(config, [*quiet, flood], seed=3).run(until_s=200.0, count_from_s=20.0)
    assert during.refused["victim"] == 0
    assert during.refused["other 0"] > 500
    assert during.p99_ttft("victim") <= 1.5 * before.p99_ttft("victim")
