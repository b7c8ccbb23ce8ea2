"""Which clusters of this user run on this machine: one small file each, naming the process that owns it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import BatonError
from deploy.processes import started_at


@dataclass(frozen=True)
class ClusterRecord:
    """Who owns a running cluster and where it answers. `started`: see `processes.started_at`. `gpus`: that Ray found,
    None in the record of an earlier release."""

    name: str
    pid: int
    started: int
    http: str
    grpc: str
    gpus: float | None = None

    @classmethod
    def of_this_process(cls, name: str, http: str, grpc: str, gpus: float | None = None) -> ClusterRecord:
        return cls(name, os.getpid(), started_at(os.getpid()) or 0, http, grpc, gpus)

    @property
    def alive(self) -> bool:
        return started_at(self.pid) == self.started


@contextmanager
def recorded(record: ClusterRecord) -> Iterator[None]:
    """The record stands on disk inside the block."""
    path = _path(record.name)
    path.write_text(json.dumps(asdict(record)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def all_records() -> list[ClusterRecord]:
    names = [path.stem for path in sorted(state_folder().glob("*.json"))]
    return [record for name in names if (record := read_record(name)) is not None]


def read_record(name: str) -> ClusterRecord | None:
    """The record of a cluster whose owner lives; a dead owner's record is removed.

    Raises `BatonError` for a file that is no record.
    """
    path = _path(name)
    try:
        record = ClusterRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BatonError(f"{path}: not a cluster record ({error}); remove it") from error
    if record.alive:
        return record
    path.unlink(missing_ok=True)
    return None


def state_folder() -> Path:
    """Where records and the logs of detached clusters lie; made when missing. Raises `BatonError` where that fails."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "baton"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BatonError(f"{folder}: cannot be made: {error.strerror}; XDG_STATE_HOME names another place") from error
    return folder


def _path(name: str) -> Path:
    return state_folder() / f"{name}.json"
