"""A live cluster as its operator sees it: a real Prometheus reads it, a collector gets whole traces, the CLI tells the
same."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx
import psutil
import pytest
import yaml

from deploy import monitoring
from deploy.dashboard import expressions
from protos.baton.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.cluster_status import ClusterStatus
from tests.live_cluster import BATON, LiveCluster, live_cluster, local_config
from tests.otlp_receiver import Received, Receiver, receiving
from tests.prometheus_server import Prometheus, needs_prometheus, prometheus

pytestmark = [pytest.mark.engine, pytest.mark.timeout(480)]

CLIENT_SPAN = "00f067aa0ba902b7"
SCRAPE_S, WAIT_S = 1, 60.0
PROMPT = list(range(300, 700))

Found = TypeVar("Found")


@dataclass(frozen=True)
class Scene:
    cluster: LiveCluster
    receiver: Receiver
    client: httpx.Client

    def complete(self, trace_id: str = "", **body: Any) -> httpx.Response:
        headers = {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-01"} if trace_id else {}
        asked = {"model": "demo", "prompt": PROMPT, "max_tokens": 10} | body
        answer = self.client.post("/v1/completions", json=asked, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def baton(self, *arguments: str) -> str:
        command = [str(BATON), *arguments, "-e", self.cluster.grpc]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.fixture(scope="module")
def scene(demo_model: Path) -> Iterator[Scene]:
    """One worker a pool, with simulated engines; every request is traced."""
    with receiving() as receiver:
        config = local_config(
            demo_model,
            "observed",
            engine={"kind": "simulated", "options": {}},
            observability={"otlp_endpoint": receiver.endpoint, "sampling_ratio": 1.0, "metrics_period_s": 2.0},
        )
        with live_cluster(config) as cluster, httpx.Client(base_url=cluster.http, timeout=60) as client:
            yield Scene(cluster, receiver, client)


def eventually(ask: Callable[[], Found], good: Callable[[Found], bool]) -> Found:
    """What another process will tell; raises `AssertionError` with the last of it."""
    give_up = time.monotonic() + WAIT_S
    while not good(told := ask()):
        assert time.monotonic() < give_up, told
        time.sleep(0.2)
    return told


# Traces


def assert_connected(spans: list[Received]) -> None:
    """One tree, whose root hangs below the client's span; every part within what it is a part of."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    roots = [span for span in spans if span.parent_id not in by_id]
    assert [root.parent_id for root in roots] == [CLIENT_SPAN], roots
    for span in spans:
        if span not in roots:
            parent = by_id[span.parent_id]
            slack_ns = 20_000_000  # the journal reads the wall clock once, then another one
            assert parent.began_ns - slack_ns <= span.began_ns <= span.ended_ns <= parent.ended_ns + slack_ns, (
                parent,
                span,
            )


def test_one_trace_connects_router_prefill_transfer_and_decode(scene: Scene) -> None:
    trace_id = "1b" * 16
    answer = scene.complete(trace_id)
    assert answer.headers["traceparent"].startswith(f"00-{trace_id}-")
    spans = scene.receiver.trace(trace_id, 9)
    assert {(span.service, span.name) for span in spans} == {
        ("baton-router", "POST /v1/completions"),
        ("baton-router", "request"),
        ("baton-router", "admission"),
        ("baton-router", "placement"),
        ("baton-router", "prefill"),
        ("baton-router", "decode"),
        ("baton-prefill", "prefill engine"),
        ("baton-decode", "decode engine"),
        ("baton-decode", "transfer simulated"),
    }
    assert_connected(spans)
    assert not any(span.failed for span in spans)
    (call,) = (span for span in spans if span.parent_id == CLIENT_SPAN)
    assert answer.headers["traceparent"] == f"00-{trace_id}-{call.span_id}-01"


def test_a_call_over_grpc_is_traced_the_same_way(scene: Scene) -> None:
    trace_id = "2c" * 16
    asked = inference_pb2.GenerateRequest(text="Once upon a time there was a prompt")
    asked.sampling.max_tokens = 10
    with grpc.insecure_channel(scene.cluster.grpc) as channel:
        metadata = (("traceparent", f"00-{trace_id}-{CLIENT_SPAN}-01"),)
        call = inference_pb2_grpc.InferenceStub(channel).Generate(asked, metadata=metadata, timeout=30)
        assert len(list(call)) > 0
        (given,) = (str(value) for name, value in call.initial_metadata() if name == "traceparent")
    spans = scene.receiver.trace(trace_id, 8)
    assert_connected(spans)
    assert given.split("-")[2] in {span.span_id for span in spans if span.name == "Generate"}


def test_the_cli_tells_the_same_from_the_journal(scene: Scene) -> None:
    trace_id = "3d" * 16
    request_id = scene.complete(trace_id).json()["id"]
    told = json.loads(scene.baton("trace", request_id, "-o", "json"))
    sent = {span.span_id: span for span in scene.receiver.trace(trace_id, 9)}
    assert told["traceId"] == trace_id == json.loads(scene.baton("explain", request_id, "-o", "json"))["traceId"]
    names = [span["name"] for span in told["spans"]]
    assert names == ["request", "admission", "placement", "prefill", "decode", "transfer simulated"]
    for span in told["spans"][:-1]:
        assert sent[span["spanId"]].name == span["name"]
    moved = told["spans"][-1]
    assert moved["durationS"] > 0
    assert int(moved["attributes"]["blocks"]) > 0 or "local" in moved["name"]


def test_a_client_that_does_not_want_its_request_traced_is_heard(scene: Scene) -> None:
    trace_id = "4e" * 16
    header = {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-00"}
    asked = {"model": "demo", "prompt": PROMPT, "max_tokens": 2}
    answer = scene.client.post("/v1/completions", json=asked, headers=header)
    assert answer.headers["traceparent"].endswith("-00")
    scene.complete("5f" * 16)
    scene.receiver.trace("5f" * 16, 9)
    with pytest.raises(AssertionError, match="0 of 1 spans"):
        scene.receiver.trace(trace_id, 1, within_s=0.1)


def test_a_dead_collector_changes_nothing_for_clients_and_is_counted(scene: Scene) -> None:
    scene.receiver.refusal = grpc.StatusCode.UNAVAILABLE
    try:
        calls = scene.receiver.calls
        scene.complete("6a" * 16)
        scene.receiver.wait_for_calls(calls + 1)
        page = eventually(lambda: scene.client.get("/metrics").text, lambda text: _failed_spans(text) > 0)
        assert 'outcome="dropped"' in page
    finally:
        scene.receiver.refusal = None


def _failed_spans(page: str) -> float:
    lines = [
        line for line in page.splitlines() if line.startswith("baton_trace_spans_total") and 'outcome="failed"' in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


# Metrics


@pytest.fixture(scope="module")
def server(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the router's page and Ray's agent while requests go on."""
    config = yaml.safe_load((monitoring.FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["rule_files"] = [str(monitoring.RULES)]
    (page,) = config["scrape_configs"]
    page["static_configs"] = [{"targets": [scene.cluster.http.removeprefix("http://")]}]
    scene.complete()
    agent = eventually(lambda: ray_agent(scene.cluster.pid), bool)
    config["scrape_configs"].append(
        {
            "job_name": "ray",
            "static_configs": [{"targets": [agent]}],
            "metric_relabel_configs": [_relabeling(each) for each in _pod_monitor_relabelings()],
        }
    )
    ended = threading.Event()

    def load() -> None:
        while not ended.wait(0.2):
            with scene.client.stream("POST", "/v1/completions", json=_streamed()) as answer:
                answer.read()

    with prometheus(tmp_path_factory.mktemp("prometheus"), config) as running:
        client = threading.Thread(target=load, name="load")
        client.start()
        try:
            yield running
        finally:
            ended.set()
            client.join()


def _streamed() -> dict[str, Any]:
    return {"model": "demo", "prompt": PROMPT, "max_tokens": 10, "stream": True}


def _pod_monitor_relabelings() -> list[dict[str, Any]]:
    monitor = yaml.safe_load((monitoring.FOLDER / "kuberay/podmonitor.yaml").read_text())
    relabelings: list[dict[str, Any]] = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    return relabelings


def _relabeling(each: dict[str, Any]) -> dict[str, Any]:
    """As Prometheus itself spells it."""
    spelt = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return {spelt.get(name, name): value for name, value in each.items()}


def ray_agent(owner: int) -> str:
    """host:port where Ray's agent exports metrics of Baton; empty while it does not."""
    processes = psutil.Process(owner).children(recursive=True)
    for process in processes:
        for connection in _listening(process):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{connection}/metrics", timeout=2) as answer:
                    if b"ray_baton_" in answer.read():
                        return f"127.0.0.1:{connection}"
            except (OSError, http.client.HTTPException):
                continue  # it speaks something else
    return ""


def _listening(process: psutil.Process) -> list[int]:
    """Of Ray's agents only; others need not be asked."""
    try:
        if not any("dashboard/agent" in part or "DashboardAgent" in part for part in process.cmdline()):
            return []
        return [each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


@needs_prometheus
def test_every_expression_of_the_dashboard_returns_data(server: Prometheus) -> None:
    eventually(lambda: server.values('rate(baton_requests_total{job="baton"}[10s])'), bool)
    for title, expression in expressions():
        asked = expression
        for variable, value in (("$__rate_interval", "30s"), ("$job", ".*"), ("$router", ".*"), ("$pool", ".*")):
            asked = asked.replace(variable, value)
        assert "$" not in asked
        told = eventually(lambda asked=asked: server.asked_by_promtool(asked), bool)  # type: ignore[misc]
        assert "=>" in told, (title, asked)


@needs_prometheus
def test_both_ways_out_tell_the_same_and_count_once(server: Prometheus, scene: Scene) -> None:
    """What Prometheus has seen of both is told again until it agrees: the two are scraped at different times."""

    def completed() -> tuple[set[str], set[float]]:
        series = server.values('baton_requests_total{outcome="completed"}')
        return {labels["job"] for labels, _ in series}, {value for _, value in series}

    with grpc.insecure_channel(scene.cluster.grpc) as channel:
        status = ClusterStatus(channel)
        before = status.read().router.requests_by_outcome["completed"]
        jobs, _ = eventually(completed, lambda told: told[0] == {"baton", "ray"} and min(told[1]) >= before)
        assert jobs == {"baton", "ray"}
        (told,) = server.values('sum(max by (router, outcome) (baton_requests_total{outcome="completed"}))')
        assert before <= told[1] <= status.read().router.requests_by_outcome["completed"]
    for name in ("baton_worker_kv_usage_ratio", "baton_itl_seconds_bucket", "baton_kv_transfer_bytes_total"):
        assert {labels["job"] for labels, _ in server.values(name)} == {"baton", "ray"}, name


@needs_prometheus
def test_the_recording_rules_give_values_and_no_alert_fires(server: Prometheus) -> None:
    eventually(lambda: server.values("baton:requests:rate5m"), bool)
    assert {labels["state"] for labels, value in server.values("baton:workers:count") if value} == {"ready"}
    firing = server.values('ALERTS{alertstate="firing"}')
    assert [labels["alertname"] for labels, _ in firing if labels["severity"] == "page"] == []
