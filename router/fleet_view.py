"""What this router believes about every worker it can reach: role, readiness and load.

Load is what other routers had there at the worker's last report, plus what this router has there now: its own work
counts from the decision on, not from the next report. Pure state; it must not know links or requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.engine import Role
from protos.baton.v1 import worker_pb2


@dataclass(slots=True)
class WorkerView:
    """`source`: host:port of its engine's KvSource, empty without one. `leaving`: finishes what it has, gets nothing
    new."""

    worker_id: str
    role: Role
    source: str = ""
    epoch: int = 0
    leaving: bool = False
    kv_usage: float = 0.0
    _others_running: int = 0
    _others_prefill_tokens: int = 0
    _own_prefill_tokens: int = 0
    _own: dict[str, int] = field(default_factory=dict)  # attempt id -> prompt tokens not known to be computed

    @property
    def attempts(self) -> tuple[str, ...]:
        """This router's live attempts there."""
        return tuple(self._own)

    @property
    def idle(self) -> bool:
        return not self._own

    @property
    def running(self) -> int:
        """Sequences there, waiting ones included."""
        return self._others_running + len(self._own)

    @property
    def queued_prefill_tokens(self) -> int:
        return self._others_prefill_tokens + self._own_prefill_tokens

    def reserve(self, attempt_id: str, prompt_tokens: int) -> None:
        self._own[attempt_id] = prompt_tokens
        self._own_prefill_tokens += prompt_tokens

    def computed(self, attempt_id: str) -> None:
        """The attempt has answered: its prompt waits no longer."""
        if attempt_id in self._own:
            self._own_prefill_tokens -= self._own[attempt_id]
            self._own[attempt_id] = 0

    def settle(self, attempt_id: str) -> None:
        self.computed(attempt_id)
        self._own.pop(attempt_id, None)

    def report(self, load: worker_pb2.Load) -> None:
        """What exceeds this router's own share is the work of other routers."""
        self._others_running = max(0, load.running + load.waiting - len(self._own))
        self._others_prefill_tokens = max(0, load.queued_prefill_tokens - self._own_prefill_tokens)
        self.kv_usage = load.kv_usage


class FleetView:
    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> WorkerView | None:
        return self._workers.get(worker_id)

    def add(self, worker_id: str, role: Role, source: str = "", epoch: int = 0) -> WorkerView:
        view = WorkerView(worker_id, role, source, epoch)
        self._workers[worker_id] = view
        return view

    def remove(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)

    def ready(self, role: Role) -> list[WorkerView]:
        """Workers of the role that take new attempts."""
        return [view for view in self._workers.values() if view.role is role and not view.leaving]

    @property
    def can_serve(self) -> bool:
        """One worker of either pool is enough: it can run whole requests."""
        return any(not view.leaving for view in self._workers.values())
