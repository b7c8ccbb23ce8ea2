"""Fixtures that every package's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from deploy.demo_model import DEMO_DIGEST, model_digest, write_demo_model

_KEPT = Path(__file__).resolve().parent.parent / ".baton" / "demo-model"

# How long an example takes says more about the machine than about the code. Whether a change lands must not hang on
# which examples were drawn: there they are always the same, and new ones are found by those who run the tests.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("house")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the time a fast test waits for something. Whether a change lands must
    not hang on who is first, either."""
    return (os.cpu_count() or 1) + (not os.environ.get("CI"))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model of seed 0: the checkout's own copy when it is intact, else one made for this run. Read only."""
    if _KEPT.is_dir() and model_digest(_KEPT) == DEMO_DIGEST:
        return _KEPT
    directory = tmp_path_factory.mktemp("model") / "demo-model"
    write_demo_model(directory)
    return directory
