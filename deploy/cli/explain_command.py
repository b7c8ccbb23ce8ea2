"""`baton explain`: why a request went where it went, as the router wrote it down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, Table, print_as
from deploy.cli.standard_input import read_standard_input

if TYPE_CHECKING:
    from deploy.cli.explain_document import Explanation
    from protos.baton.v1 import admin_pb2


@command
def explain(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The `id` in the answer.", show_default=False)] = "",
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say where this text would go now, without sending it; - is standard input."),
    ] = None,
    session: Annotated[str, typer.Option(help="With --prompt-file: the session that it would belong to.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="With --prompt-file: longest answer.")] = 256,
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Show why a request went where it went, or where a prompt would go; exits 4 when no router knows the request, 7
    when no router answers."""
    told = _ask(_question(request_id, prompt_file, session, max_tokens), endpoint, timeout)
    return print_as(told.document, explanation_tables(told), output)


def ask_recorded(request_id: str, endpoint: str, timeout_s: float) -> Explanation:
    """Of a request that was sent."""
    from protos.baton.v1 import admin_pb2

    return _ask(admin_pb2.ExplainRequest(request_id=request_id), endpoint, timeout_s)


def _question(request_id: str, prompt_file: Path | None, session: str, max_tokens: int) -> admin_pb2.ExplainRequest:
    from protos.baton.v1 import admin_pb2

    if bool(request_id) == (prompt_file is not None):
        raise Stop("name either the ID of a request or --prompt-file", Exit.USAGE)
    if prompt_file is None:
        return admin_pb2.ExplainRequest(request_id=request_id)
    dry_run = admin_pb2.DryRun(text=_text(prompt_file), session_id=session, max_tokens=max_tokens)
    return admin_pb2.ExplainRequest(dry_run=dry_run)


def _text(path: Path) -> str:
    if str(path) == "-":
        return read_standard_input()
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Stop(f"--prompt-file {path}: {error}", Exit.USAGE) from error


def _ask(asked: admin_pb2.ExplainRequest, endpoint: str, timeout_s: float) -> Explanation:
    from deploy.cli.endpoint import ask_admin
    from deploy.cli.explain_document import explanation

    return explanation(ask_admin(endpoint, timeout_s, lambda admin: admin.Explain(asked, timeout=timeout_s)))


def explanation_tables(told: Explanation) -> list[Table]:
    return [_request(told), _decisions(told), _candidates(told), _attempts(told), _transfers(told)]


def _request(told: Explanation) -> Table:
    if told.arrived_at is None:
        return Table("Dry run", ("request", "value"), _foretold(told))
    rows = [
        ("outcome", told.outcome or "running"),
        ("prompt tokens", str(told.prompt_tokens)),
        ("of them cached", f"{_told(told.cached_tokens_actual)} (predicted {told.cached_tokens_predicted})"),
        ("output tokens", str(told.output_tokens)),
        ("first token", f"{_ms(told.actual.ttft_s)} (predicted {_ms(told.predicted.ttft_s)})"),
        ("between tokens", f"{_ms(told.actual.itl_s)} (predicted {_ms(told.predicted.itl_s)})"),
        ("queued", _ms(told.queued_s)),
    ]
    said = {
        "session": told.session,
        "tenant": told.tenant,
        "priority": told.priority,
        "trace": told.trace_id,
        "error": told.error,
    }
    rows += [(name, value) for name, value in said.items() if value]
    return Table(f"Request {told.request}", ("request", "value"), rows)


def _foretold(told: Explanation) -> list[tuple[str, str]]:
    """Of a prompt that was not sent."""
    return [
        ("prompt tokens", str(told.prompt_tokens)),
        ("of them cached", str(told.cached_tokens_predicted)),
        ("first token", _ms(told.predicted.ttft_s)),
        ("between tokens", _ms(told.predicted.itl_s)),
    ]


def _decisions(told: Explanation) -> Table:
    rows = [(each.question, _ms(each.at_s), each.chosen, each.runner_up, each.because) for each in told.decisions]
    return Table("Decisions", ("question", "at", "chosen", "runner-up", "because"), rows)


def _candidates(told: Explanation) -> Table:
    rows = [
        (
            decision.question,
            each.worker,
            _ms(each.total_s),
            " ".join(f"{name}={_ms(seconds)}" for name, seconds in each.costs.items()),
        )
        for decision in told.decisions
        for each in decision.candidates
    ]
    return Table("Candidates", ("question", "worker", "total", "costs"), rows)


def _attempts(told: Explanation) -> Table:
    rows = [
        (each.leg, each.worker, _ms(each.at_s), _ms(each.duration_s), each.outcome, each.reason)
        for each in told.attempts
    ]
    return Table("Attempts", ("leg", "worker", "at", "took", "outcome", "reason"), rows)


def _transfers(told: Explanation) -> Table:
    rows = [
        (
            each.attempt,
            each.transport,
            each.outcome,
            _ms(each.duration_s),
            str(each.blocks),
            str(each.bytes),
            each.reason,
        )
        for each in told.rungs
    ]
    return Table("Transfers", ("attempt", "transport", "outcome", "took", "blocks", "bytes", "reason"), rows)


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.3g}ms"


def _told(value: int | None) -> str:
    return "unknown" if value is None else str(value)
