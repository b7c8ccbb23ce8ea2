"""Spans as a collector receives them, over real gRPC."""

from __future__ import annotations

import grpc
import pytest

from cluster.config_observability import ObservabilityConfig
from cluster.open_tracing import close_outbox, open_outbox
from cluster.tracing import Span
from cluster.tracing_otlp import CollectorRefuses, OtlpExport
from tests.ipv6 import NEEDS_IPV6
from tests.otlp_receiver import receiving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = Span("request", TRACE, "cd" * 8, "ab" * 8, 1.5, 2.25, {"tokens": 3, "share": 0.5, "worker": "p1"}, "it broke")


def test_ids_times_attributes_and_failure_arrive() -> None:
    with receiving() as receiver:
        OtlpExport(receiver.endpoint, {"service.name": "baton-test"})([SPAN])
        (came,) = receiver.trace(TRACE, 1)
    assert (came.service, came.name, came.span_id, came.parent_id) == ("baton-test", "request", "cd" * 8, "ab" * 8)
    assert (came.began_ns, came.ended_ns) == (1_500_000_000, 2_250_000_000)
    assert came.attributes == {"tokens": "3", "share": "0.5", "worker": "p1"}
    assert came.failed


@NEEDS_IPV6
def test_a_collector_may_have_an_ipv6_address() -> None:
    with receiving("[::1]") as receiver:
        OtlpExport(receiver.endpoint, {"service.name": "baton-test"})([SPAN])
        assert receiver.trace(TRACE, 1)


def test_a_refusal_and_a_collector_that_is_not_there_are_errors() -> None:
    with receiving() as receiver:
        receiver.refusal = grpc.StatusCode.RESOURCE_EXHAUSTED
        export = OtlpExport(receiver.endpoint, {})
        with pytest.raises(CollectorRefuses, match="RESOURCE_EXHAUSTED"):
            export([SPAN])
    with pytest.raises(CollectorRefuses, match="UNAVAILABLE"):
        export([SPAN])


def test_what_a_collector_rejects_of_a_batch_is_counted_and_why_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with receiving() as receiver:
        export = OtlpExport(receiver.endpoint, {"service.name": "baton-test"})
        assert export([SPAN] * 5) == 0
        receiver.rejects = 3
        assert [export([SPAN] * 5), export([SPAN] * 5)] == [3, 3]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "rejects 3 of 5 spans: too long" in said


async def test_without_an_endpoint_there_is_nothing_to_close() -> None:
    assert open_outbox(ObservabilityConfig(), "baton-router", "r1") is None
    await close_outbox(None)


async def test_what_was_sent_last_arrives_before_the_end() -> None:
    with receiving() as receiver:
        outbox = open_outbox(ObservabilityConfig(otlp_endpoint=receiver.endpoint), "baton-router", "r1")
        assert outbox is not None
        outbox.send([SPAN])
        await close_outbox(outbox)
        assert [span.service for span in receiver.trace(TRACE, 1)] == ["baton-router"]


@pytest.mark.parametrize(
    "endpoint", ["collector:4317", "grpc://c:1", "http://c", "http://c:4317/v1/traces", "http://c:x"]
)
def test_an_endpoint_that_cannot_work_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        ObservabilityConfig(otlp_endpoint=endpoint)
