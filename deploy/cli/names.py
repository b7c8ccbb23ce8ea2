"""Names that an operator gives, held against those that are there."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.cli.outcome import Exit, Stop


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raises `Stop`, not found, with the nearest of the names that are known."""
    from cluster.nearest import nearest_names

    there = list(known)
    if name not in there:
        raise Stop(nearest_names(kind, name, there), Exit.NOT_FOUND)


def check_worker_seen(worker: str, endpoint: str, timeout_s: float) -> None:
    """Raises `Stop` for a worker that is not there and that neither events nor requests of the router name: of one that
    left there may be something to tell."""
    from deploy.cli.lists import ask_events, ask_requests
    from deploy.cli.status_command import ask_status

    if ask_requests(endpoint, timeout_s, 1, worker=worker):
        return
    there = [each.id for each in ask_status(endpoint, timeout_s).workers]
    seen = [event.worker for event in ask_events(endpoint, timeout_s) if event.worker]
    check_name("worker", worker, {*there, *seen})
