"""The answer of `Admin.Autoscale` and `Admin.Scale` as the document that the commands print: stable keys.

Knows the protocol's messages; knows nothing of channels or of how a document is written. What is not known is null.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from deploy.cli.document_part import Moment, Part
from deploy.cli.status_document import role_name
from protos.baton.v1 import admin_pb2


class Need(Part):
    """What one rule wants, in workers."""

    rule: str
    workers: float | None
    because: str


class Limit(Part):
    name: str
    size: int
    because: str


class Change(Part):
    at: Moment
    before: int
    after: int
    because: str


class Pool(Part):
    """`ordered`: its bounds are an operator's; `scales` is false for a pool of fixed size. `changes`: the newest
    first."""

    pool: str
    size: int
    running: int
    least: int
    most: int
    scales: bool
    ordered: bool
    because: str
    inputs: dict[str, float | None]
    needs: list[Need]
    limits: list[Limit]
    changes: list[Change]


class Autoscaling(Part):
    """`decided_s`: seconds since the last decision. `router_age_s`: seconds since each router's last report."""

    api_version: Literal["baton/v1"] = "baton/v1"
    kind: Literal["Autoscaling"] = "Autoscaling"
    paused: bool
    pause_reason: str
    decided_s: float | None
    cost: float
    budget: float | None
    router_age_s: dict[str, float] = Field(default_factory=dict)
    pools: list[Pool]


def autoscaling(told: admin_pb2.AutoscaleReport) -> Autoscaling:
    return Autoscaling(
        paused=told.paused,
        pause_reason=told.pause_reason,
        decided_s=told.decided_s if told.HasField("decided_s") else None,
        cost=told.cost,
        budget=told.budget if told.HasField("budget") else None,
        router_age_s=dict(told.router_age_s),
        pools=[_pool(pool) for pool in told.pools],
    )


def _pool(pool: admin_pb2.PoolScaling) -> Pool:
    return Pool(
        pool=role_name(pool.role),
        size=pool.size,
        running=pool.running,
        least=pool.least,
        most=pool.most,
        scales=pool.scales,
        ordered=pool.ordered,
        because=pool.because,
        inputs={name: _known(value) for name, value in sorted(pool.inputs.items())},
        needs=[Need(rule=need.rule, workers=_known(need.workers), because=need.because) for need in pool.needs],
        limits=[Limit(name=limit.name, size=limit.size, because=limit.because) for limit in pool.limits],
        changes=[
            Change(at=change.unix_s, before=change.before, after=change.after, because=change.because)
            for change in pool.changes
        ],
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
