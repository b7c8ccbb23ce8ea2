"""What can be wrong with a cluster that runs: judged from one status of one router, without asking again."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.cli.amounts import age
from deploy.cli.status_document import ClusterStatus, Worker
from deploy.doctor.check import Check, fail, ok, warn

_MOST_SKEW_S, _SOME_SKEW_S = 2.0, 0.25
_LONG_SILENT_S = 3.0


def live_checks(status: ClusterStatus, own_version: str) -> list[Check]:
    """`own_version`: of the command that asks."""
    return [
        *_pools(status),
        *map(_worker, status.workers),
        _versions(status, own_version),
        _clocks(status),
        _store(status),
    ]


def _pools(status: ClusterStatus) -> Iterator[Check]:
    for pool in status.pools:
        name, found = f"pool {pool.pool}", f"{pool.ready} of {pool.total} ready"
        if pool.at_zero:
            yield ok(name, f"{found}, none wanted")
        elif pool.ready == 0:
            yield fail(name, found, "see `baton get events` and the workers' logs for why none is")
        elif pool.ready < pool.total:
            yield warn(name, found, "see the workers below")
        else:
            yield ok(name, found)


def _worker(worker: Worker) -> Check:
    name = f"worker {worker.id}"
    if worker.unreachable:
        if worker.heard_s is not None and worker.heard_s <= _LONG_SILENT_S:  # the router itself does not miss it yet
            heard = f"; heard {age(worker.heard_s)} ago"
            return warn(name, worker.unreachable + heard, "very busy, or just gone: look again in a moment")
        last = f"; told {age(worker.age_s)} ago" if worker.age_s else ""
        return fail(name, worker.unreachable + last, f"is {worker.address} up, and can the router reach it?")
    if worker.state in ("stalled", "failed"):
        return fail(name, f"{worker.state}: {worker.reason}", "Serve replaces it; its log says why")
    if worker.heard_s is None:
        return warn(name, f"{worker.state}, but the router has no session with it", "wait a moment and look again")
    heard = f"{worker.state}, heard {age(worker.heard_s)} ago"
    if worker.heard_s > _LONG_SILENT_S:
        return warn(name, heard, "it answers, but its watch is silent: see its log")
    return ok(name, heard)


def _versions(status: ClusterStatus, own: str) -> Check:
    found = {status.router.id: status.router.version} | {worker.id: worker.version for worker in status.workers}
    told = {name: version for name, version in found.items() if version}
    if len(set(told.values())) > 1:
        each = ", ".join(f"{name} {version}" for name, version in told.items())
        return fail("versions", each, "finish the update, or put the old version back: parts must be equal")
    running = next(iter(told.values()), "unknown")
    if running != own:
        return warn("versions", f"the cluster runs {running}, this command is {own}", "use the cluster's own version")
    return ok("versions", f"all {running}")


def _clocks(status: ClusterStatus) -> Check:
    ahead = {worker.id: worker.clock_ahead_s for worker in status.workers if worker.clock_ahead_s is not None}
    if not status.workers:
        return ok("clocks", "no worker runs")
    if not ahead:
        return warn("clocks", "no worker told its time", "see the workers above")
    worker_id, most = max(ahead.items(), key=lambda item: abs(item[1]))
    found = f"{abs(most) * 1e3:.0f} ms apart ({worker_id}), or a little more"
    advice = "run NTP or PTP on every machine: tickets and the events' times rest on it"
    if abs(most) > _MOST_SKEW_S:
        return fail("clocks", found, advice)
    return warn("clocks", found, advice) if abs(most) > _SOME_SKEW_S else ok("clocks", found)


def _store(status: ClusterStatus) -> Check:
    if status.store.degraded:
        away = f"away for {age(status.store.degraded_s)}: {status.store.reason}"
        return fail("routers' store", away, "routers go on alone meanwhile; bring the store back")
    return ok("routers' store", f"{status.store.routers} routers")
