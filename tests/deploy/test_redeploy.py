"""When a redeployment is done: nothing of the old version runs any more, and nothing of the new one still starts."""

from __future__ import annotations

import pytest

from deploy.redeploy import _settled


@pytest.mark.parametrize(
    ("states", "settled"),
    [
        ({"RUNNING": 2}, True),
        ({"RUNNING": 2, "STOPPING": 0}, True),
        ({"RUNNING": 2, "STOPPING": 1}, False),
        ({"RUNNING": 1, "STARTING": 1}, False),
        ({}, True),
    ],
)
def test_a_pool_is_settled_when_all_of_it_runs_be_it_nothing(states: dict[str, int], settled: bool) -> None:
    assert _settled(states) == settled
