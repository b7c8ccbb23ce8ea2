"""What a watcher of the directory believes while the directory is away, or has just been made anew. Pure rule.

The directory lives in memory: when it is lost, a fresh one starts empty, and live workers must not disappear with it.
So a fresh one is `warming` until every live worker has had the time to announce itself again; until then a watcher
keeps what it knew, adds what is announced and takes away what is withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.membership import Membership, WorkerRecord


@dataclass(frozen=True, slots=True)
class View:
    """A directory's answer. `incarnation` names its start; `withdrawn` are (worker id, epoch) of those that left
    while it was warming."""

    incarnation: str
    version: int
    warming: bool
    workers: tuple[WorkerRecord, ...]
    withdrawn: tuple[tuple[str, int], ...] = ()


class Continuity:
    """One watcher's memory across incarnations of the directory."""

    def __init__(self) -> None:
        self._known: dict[str, WorkerRecord] = {}
        self._version = 0

    def update(self, view: View) -> Membership | None:
        """The membership to show from now on; None when it is the one shown before."""
        known = {record.worker_id: record for record in view.workers}
        if view.warming:
            known = self._kept(view) | {k: r for k, r in known.items() if not self._newer(r)}
        if known == self._known and self._version:
            return None
        self._known = known
        self._version += 1
        return Membership(self._version, tuple(sorted(known.values(), key=lambda record: record.worker_id)))

    def _kept(self, view: View) -> dict[str, WorkerRecord]:
        gone = set(view.withdrawn)
        return {k: record for k, record in self._known.items() if (record.worker_id, record.epoch) not in gone}

    def _newer(self, record: WorkerRecord) -> bool:
        known = self._known.get(record.worker_id)
        return known is not None and known.epoch > record.epoch
