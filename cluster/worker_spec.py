"""What a worker is told to be, and the states it can be in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cluster.config_security import ClusterTlsConfig
from cluster.engine import Role
from cluster.worker_session import OUTGOING_LIMIT
from cluster.worker_watch import WATCH_EVERY_S
from protos.baton.v1 import worker_pb2 as pb


class State(Enum):
    STARTING = pb.WORKER_STATE_STARTING
    READY = pb.WORKER_STATE_READY
    DRAINING = pb.WORKER_STATE_DRAINING
    STALLED = pb.WORKER_STATE_STALLED
    FAILED = pb.WORKER_STATE_FAILED


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """`epoch` is new with every engine start and grows. `listen_host` may be a wildcard, `advertise_host` is what
    others dial. Port 0 takes a free one. `look_every_s`: how often progress and counters are looked at.
    `outgoing_limit`: steps that a router may be behind. `watch_every_s`: how often, at most, routers that watch are
    told what changed. `tls`: with whom it speaks encrypted; None: with all in plain text."""

    worker_id: str
    role: Role
    epoch: int
    listen_host: str = "127.0.0.1"
    advertise_host: str = "127.0.0.1"
    port: int = 0
    stall_after_s: float = 3.0
    look_every_s: float = 1.0
    outgoing_limit: int = OUTGOING_LIMIT
    watch_every_s: float = WATCH_EVERY_S
    tls: ClusterTlsConfig | None = None
