"""What a client can get wrong over HTTP: an OpenAI-style error with a 4xx status, and nothing was queued for it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.e2e.cluster_status import ClusterStatus
from tests.live_cluster import LiveCluster

pytestmark = [pytest.mark.engine, pytest.mark.timeout(580)]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def _post(cluster: LiveCluster, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(cluster.http + path, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _attempts(status: ClusterStatus) -> int:
    counters = [worker.description.counters for worker in status.read().workers]
    return sum(sum(c.attempts_by_outcome.values()) for c in counters)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, {"model": "demo", "prompt": [400] * 4097}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "max_tokens": 0}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "max_tokens": -3}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": ""}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": []}, 400),
        (COMPLETIONS, {"model": "demo"}, 400),
        (COMPLETIONS, {"model": "other", "prompt": "x"}, 404),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "temperature": -1}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "top_p": 2}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "temperature": "hot"}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "n": 1000}, 400),
        (COMPLETIONS, {"model": "demo", "prompt": "x", "kv_transfer_params": {"remote_host": "10.0.0.1"}}, 400),
        (CHAT, {"model": "demo", "messages": HELLO, "kv_transfer_params": {"ticket": "x"}}, 400),
        (CHAT, {"model": "demo", "messages": []}, 400),
        (CHAT, {"model": "other", "messages": HELLO}, 404),
        (CHAT, {"model": "demo", "messages": HELLO, "max_tokens": 0}, 400),
        (CHAT, {"model": "demo", "messages": "Hello"}, 400),
    ],
)
def test_a_bad_request_is_refused_before_it_is_queued(
    cluster: LiveCluster, status: ClusterStatus, path: str, body: dict[str, Any], expected: int
) -> None:
    before = _attempts(status)
    code, answer = _post(cluster, path, json.dumps(body).encode())
    assert code == expected, answer
    assert answer["error"]["message"]
    assert {"message", "type", "code"} <= set(answer["error"])
    assert _attempts(status) == before


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff\xfe", b'"text"', b"null"])
def test_a_body_that_is_no_json_object_is_refused(cluster: LiveCluster, status: ClusterStatus, body: bytes) -> None:
    code, answer = _post(cluster, COMPLETIONS, body)
    assert code == 400, answer
    assert answer["error"]["message"]


def test_a_body_over_the_limit_is_refused_and_the_limit_named(cluster: LiveCluster, status: ClusterStatus) -> None:
    body = json.dumps({"model": "demo", "prompt": "x" * (8 * 1024 * 1024)}).encode()
    code, answer = _post(cluster, COMPLETIONS, body)
    assert code == 413
    assert str(8 * 1024 * 1024) in answer["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/pause", "/resume", "/reset_prefix_cache", "/sleep", "/collective_rpc", "/invocations"]
)
def test_engine_routes_that_no_client_needs_are_not_served(
    cluster: LiveCluster, status: ClusterStatus, path: str
) -> None:
    code, answer = _post(cluster, path, b"{}")
    assert code == 404
    assert answer["error"]["message"]
