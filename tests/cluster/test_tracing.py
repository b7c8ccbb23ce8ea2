"""Trace context: what is taken from a client, who is traced, and ids that both ends of a call agree on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.tracing import Sampling, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, False)),
        (f" 00-{TRACE}-{SPAN}-03 ", (TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what a later version adds", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-too much", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
    ],
)
def test_a_header_is_read_as_the_standard_has_it(header: str, told: tuple[str, str, bool] | None) -> None:
    assert parse_traceparent(header) == told


@given(st.text(max_size=80))
def test_no_header_can_break_it(header: str) -> None:
    told = Sampling(1.0, lambda: 0.0).begin(header, header)
    assert parse_traceparent(told.traceparent) == (told.trace_id, told.span_id, told.sampled)


def test_the_client_decides_where_it_says_so_and_chance_where_it_does_not() -> None:
    draws = iter([0.05, 0.5])
    sampling = Sampling(0.1, lambda: 7.0, lambda: next(draws))
    assert sampling.begin(f"00-{TRACE}-{SPAN}-01").sampled
    assert not sampling.begin(f"00-{TRACE}-{SPAN}-00").sampled
    assert sampling.begin().sampled
    assert not sampling.begin("nonsense").sampled


def test_a_call_is_a_child_of_its_client_and_its_parts_are_told_to_peers() -> None:
    context = Sampling(0.0, lambda: 7.0).begin(f"00-{TRACE}-{SPAN}-01", "vendor=1")
    assert (context.trace_id, context.parent_id, context.began_unix_s) == (TRACE, SPAN, 7.0)
    assert context.span_id != SPAN
    told = context.headers("r1/prefill1")
    assert told == {"traceparent": f"00-{TRACE}-{context.span_of('r1/prefill1')}-01", "tracestate": "vendor=1"}
    assert "tracestate" not in Sampling(0.0, lambda: 7.0).begin(f"00-{TRACE}-{SPAN}-01").headers("r1/prefill1")


@given(st.text(alphabet=HEX, min_size=32, max_size=32), st.text(), st.text())
def test_ids_follow_from_trace_and_name_alone(trace_id: str, one: str, other: str) -> None:
    from cluster.tracing import span_id

    assert len(span_id(trace_id, one)) == 16
    assert (span_id(trace_id, one) == span_id(trace_id, other)) == (one == other)
