"""One real cluster for all end-to-end tests, and the check after each that nothing is left on either side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import openai
import pytest

from tests.e2e.cluster_status import ClusterStatus
from tests.live_cluster import LiveCluster, live_cluster, local_config


@pytest.fixture(scope="session")
def cluster(demo_model: Path) -> Iterator[LiveCluster]:
    """1 router, 1 prefill and 1 decode worker on real vLLM in float32, so that equal output means equal tokens."""
    # Left to itself, a model with random weights fills structured output with blanks until its tokens are used up.
    grammar = {"backend": "xgrammar", "disable_any_whitespace": True}
    config = local_config(
        demo_model,
        "e2e",
        model={"dtype": "float32"},
        # Nothing fails in here but by what a test does, so a machine that stands still is waited for.
        router={"tool_call_parser": "hermes", "worker_deadline_s": 20.0},
        engine={"options": {"enforce_eager": True, "structured_outputs_config": grammar}},
    )
    with live_cluster(config) as running:
        yield running


@pytest.fixture(scope="session")
def channel(cluster: LiveCluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.grpc) as channel:
        yield channel


@pytest.fixture(scope="session")
def client(cluster: LiveCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.http}/v1", api_key="none", timeout=60, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def status(channel: grpc.Channel) -> ClusterStatus:
    return ClusterStatus(channel)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that used the cluster: no request in flight, no live lease, no pinned block, on any worker."""
    status = request.getfixturevalue("status") if "cluster" in request.fixturenames else None
    yield
    if status is not None:
        status.wait_until_quiet()
