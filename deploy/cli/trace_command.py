"""`baton trace`: what a request did and when, as a tree of spans from the router's journal; needs no collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import command
from deploy.cli.output import Format, Table, print_as

if TYPE_CHECKING:
    from deploy.cli.trace_document import Span, Trace

_SHOWN = ("worker_id", "because", "blocks", "bytes", "handshake_s", "prompt_tokens", "cached_tokens", "output_tokens")


@command
def trace(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The `id` in the answer.", show_default=False)],
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Show what a request waited for, which workers it used and how its blocks moved; exits 4 when no router
    knows the request, 7 when no router answers."""
    from deploy.cli.endpoint import ask_admin
    from deploy.cli.trace_document import trace_document
    from protos.baton.v1 import admin_pb2

    asked = admin_pb2.TraceRequest(request_id=request_id)
    told = trace_document(ask_admin(endpoint, timeout, lambda admin: admin.Trace(asked, timeout=timeout)))
    return print_as(told.document, [_tree(told)], output)


def _tree(told: Trace) -> Table:
    title = f"Request {told.request}" + (f", trace {told.trace_id}" if told.trace_id else "")
    rows = [
        ("  " * span.depth + span.name, _ms(span.at_s), _ms(span.duration_s), _outcome(span), _details(span))
        for span in told.spans
    ]
    return Table(title, ("span", "at", "took", "outcome", "details"), rows)


def _outcome(span: Span) -> str:
    outcome = span.attributes.get("outcome", "")
    return f"{outcome}: {span.failed}" if span.failed and span.failed != outcome else outcome


def _details(span: Span) -> str:
    return " ".join(f"{name}={span.attributes[name]}" for name in _SHOWN if name in span.attributes)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}ms"
