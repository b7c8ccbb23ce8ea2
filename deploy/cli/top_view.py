"""What `baton top` shows, and its screen: one look at a router, tables of it, and a loop that draws them until q."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from deploy.cli.amounts import milliseconds, rate, share, size
from deploy.cli.kinds import state_of
from deploy.cli.list_documents import RequestItem
from deploy.cli.lists import ask_requests
from deploy.cli.outcome import Exit, Stop
from deploy.cli.output import Table
from deploy.cli.status_command import ask_status
from deploy.cli.status_document import ClusterStatus, Worker

if TYPE_CHECKING:
    import rich.console

_REQUESTS = 300  # newest ones, from which times are taken
_SORTS = {"l": "load", "t": "ttft"}
_QUIT = "q"


@dataclass(frozen=True, slots=True)
class Look:
    """`ttft_s`, `itl_s`: medians over the newest requests, by worker."""

    status: ClusterStatus
    ttft_s: dict[str, float]
    itl_s: dict[str, float]


def look(endpoint: str, timeout_s: float) -> Look:
    """Raises `Stop`."""
    status = ask_status(endpoint, timeout_s)
    ttft, itl = _medians(ask_requests(endpoint, timeout_s, _REQUESTS))
    return Look(status, ttft, itl)


def top_tables(seen: Look, sort: str) -> list[Table]:
    return [_summary(seen), _workers(seen, sort)]


def run_live(endpoint: str, timeout_s: float, every_s: float, sort: str) -> Exit:
    """Until q or Ctrl-C. A router that does not answer is said so, and asked again."""
    import rich.live

    seen, trouble = look(endpoint, timeout_s), ""
    with _keys() as pressed, rich.live.Live(_screen(seen, sort, trouble), screen=True, auto_refresh=False) as live:
        while True:
            key = pressed(every_s)
            if key == _QUIT:
                return Exit.OK
            sort = _SORTS.get(key, sort)
            if not key:
                try:
                    seen, trouble = look(endpoint, timeout_s), ""
                except Stop as stop:
                    trouble = stop.message
            live.update(_screen(seen, sort, trouble), refresh=True)


def _screen(seen: Look, sort: str, trouble: str) -> rich.console.Group:
    import rich.console
    import rich.text

    from deploy.cli.output import drawn

    now = time.strftime("%H:%M:%S")
    head = f"{now}  {seen.status.router.model}  {seen.status.router.id}  sorted by {sort}: l load, t ttft, q quits"
    lines = [rich.text.Text(head, style="bold")]
    if trouble:
        lines.append(rich.text.Text(f"as before: {trouble}", style="red"))
    return rich.console.Group(*lines, *(drawn(table) for table in top_tables(seen, sort)))


@contextlib.contextmanager
def _keys() -> Iterator[_Pressed]:
    """Keys at once and unseen, as long as the block lasts."""
    if not sys.stdin.isatty():
        yield _Pressed(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _Pressed(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@dataclass(frozen=True, slots=True)
class _Pressed:
    descriptor: int | None

    def __call__(self, within_s: float) -> str:
        """The next key; empty when none came in time."""
        if self.descriptor is None:
            time.sleep(within_s)
            return ""
        ready, _, _ = select.select([self.descriptor], [], [], within_s)
        return os.read(self.descriptor, 1).decode("latin-1") if ready else ""


def _summary(seen: Look) -> Table:
    status, counters = seen.status, seen.status.counters
    pools = ", ".join(f"{pool.pool} {pool.ready}/{pool.total}" for pool in status.pools)
    landed = [each for each in counters.kv_transfers if each.outcome == "landed"]
    moved, seconds = sum(each.bytes for each in landed), sum(each.duration_s for each in landed)
    rows = [
        ("model", status.router.model),
        ("ready", pools),
        ("requests", f"{status.router.in_flight} in flight, {status.router.queued} of them waiting"),
        ("ended", ", ".join(f"{count} {outcome}" for outcome, count in counters.requests.items()) or "none"),
        ("moved", f"{size(moved)}, {rate(moved, seconds)} in a pull"),
    ]
    if status.store.degraded:
        rows.append(("store", f"away: {status.store.reason}"))
    return Table("Cluster", ("what", "value"), rows)


def _workers(seen: Look, sort: str) -> Table:
    columns = ("worker", "pool", "state", "running", "waiting", "queued", "kv", "leases", "ttft", "itl")
    ordered = sorted(seen.status.workers, key=lambda worker: (_weight(worker, seen, sort), worker.id))
    rows = [
        (
            worker.id,
            worker.pool,
            state_of(worker),
            str(worker.load.running),
            str(worker.load.waiting),
            str(worker.load.queued_prefill_tokens),
            share(worker.load.kv_usage, 1.0),
            str(worker.load.leases),
            milliseconds(seen.ttft_s.get(worker.id)),
            milliseconds(seen.itl_s.get(worker.id)),
        )
        for worker in ordered
    ]
    return Table("Workers", columns, rows)


def _weight(worker: Worker, seen: Look, sort: str) -> tuple[float, ...]:
    """Smallest first."""
    load = worker.load
    busy = (-load.queued_prefill_tokens, -(load.running + load.waiting), -load.kv_usage)
    return (-seen.ttft_s.get(worker.id, 0.0), *busy) if sort == "ttft" else busy


def _medians(requests: list[RequestItem]) -> tuple[dict[str, float], dict[str, float]]:
    """Of times to first token by prefill worker, and of times between tokens by decode worker."""
    ttft: defaultdict[str, list[float]] = defaultdict(list)
    itl: defaultdict[str, list[float]] = defaultdict(list)
    for request in requests:
        if request.ttft_s is not None and request.prefill_worker:
            ttft[request.prefill_worker].append(request.ttft_s)
        if request.itl_s is not None and request.decode_worker:
            itl[request.decode_worker].append(request.itl_s)
    return {name: median(each) for name, each in ttft.items()}, {name: median(each) for name, each in itl.items()}
