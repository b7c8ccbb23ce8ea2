"""Two configurations compared key by key, and what a change of each key means to a cluster that runs.

Pure: whole documents in, differences out. It must not know where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.config import Config
from cluster.config_parts import version_of, worker_part
from cluster.engine import Role
from deploy.app_size import most_cpus, most_resources, too_few_gpus
from deploy.document import Json

DEPLOYMENTS = ("router", *(role.value for role in Role))

_FIXED = ("name", "router.http_host", "router.http_port", "router.grpc_host", "router.grpc_port")
"""What a cluster is started with and keeps."""

_CLOSE_S = 60.0  # on top of its drain, until a replica has ended


@dataclass(frozen=True, slots=True)
class Change:
    """`before` and `after` of one key, such as "router.http_port"."""

    key: str
    before: Json
    after: Json


def changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[Change]:
    """Of effective configurations, in the order of the keys."""
    old, new = dict(flattened(before)), dict(flattened(after))
    keys = sorted(old.keys() | new.keys())
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def flattened(document: Mapping[str, Json], above: str = "") -> Iterator[tuple[str, Json]]:
    """Every value with its whole key. An empty mapping is a value."""
    for name, value in document.items():
        key = f"{above}.{name}" if above else name
        if isinstance(value, Mapping) and value:
            yield from flattened(value, key)
        else:
            yield key, value


def replaced(before: Config, after: Config) -> tuple[str, ...]:
    """The deployments with a new version: routers are made with the whole configuration, workers with their part."""
    if version_of(before) == version_of(after):
        return ()
    parts = {role.value: (worker_part(before, role), worker_part(after, role)) for role in Role}
    return "router", *(name for name, (old, new) in parts.items() if version_of(old) != version_of(new))


def longest_change_s(before: Config, after: Config) -> float:
    """How long it may take until all runs with `after`: an old replica may need all of its drain, and a new one all of
    the time that it has for its start, twice where a pool is replaced in two steps."""
    drain_s = max(before.router.drain_s, before.prefill.drain_s, before.decode.drain_s)
    return drain_s + _CLOSE_S + 2 * after.engine.start_deadline_s


def refusals(before: Config, after: Config, found: list[Change], gpus: float | None) -> list[str]:
    """Why a running cluster cannot take the change; empty when it can. `gpus`: that it has, None where nobody knows."""
    reasons = [
        f"{change.key}: {change.before} is fixed while the cluster runs: `baton down`, then `baton up`"
        for change in found
        if change.key in _FIXED
    ]
    has, needs = most_cpus(before), most_cpus(after)
    if needs > has:
        reasons.append(f"needs {needs:g} CPUs, and Ray was started for {has:g}: `baton down`, then `baton up`")
    if gpus is not None and (why := too_few_gpus(after, gpus)) is not None:
        reasons.append(why)
    had, wanted = most_resources(before), most_resources(after)
    reasons += [
        f"needs {amount:g} of resource {name}, and Ray was started with {had.get(name, 0.0):g}"
        for name, amount in wanted.items()
        if amount > had.get(name, 0.0)
    ]
    return reasons
