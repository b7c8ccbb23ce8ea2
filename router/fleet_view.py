"""Which workers this router can reach, which of them take new work, and what it has running on each.

Pure state; how busy they are is kept by `placing`. It must not know links or requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from cluster.engine import Role


@dataclass(slots=True)
class WorkerView:
    """`source`: host:port of its engine's KvSource, empty without one. `leaving`: finishes what it has, gets nothing
    new. `attempts`: this router's live ones there."""

    worker_id: str
    role: Role
    source: str = ""
    epoch: int = 0
    num_blocks: int = 0
    leaving: bool = False
    attempts: set[str] = field(default_factory=set)

    @property
    def idle(self) -> bool:
        return not self.attempts


class FleetView:
    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> WorkerView | None:
        return self._workers.get(worker_id)

    def add(self, worker_id: str, role: Role, source: str = "", epoch: int = 0, num_blocks: int = 0) -> WorkerView:
        view = WorkerView(worker_id, role, source, epoch, num_blocks)
        self._workers[worker_id] = view
        return view

    def remove(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)

    def ready(self, role: Role) -> list[WorkerView]:
        """Workers of the role that take new attempts."""
        return [view for view in self._workers.values() if view.role is role and not view.leaving]

    def has_any(self, roles: Collection[Role]) -> bool:
        """Whether a worker of one of these pools takes new attempts."""
        return any(view.role in roles and not view.leaving for view in self._workers.values())
