"""`baton up` and `baton down`: one process owns the cluster; down asks that process to end.

Where a cluster runs in the background, a small state file under the user's state folder names its owner.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.config import Config, load_config
from cluster.errors import ConfigError, StartFailed
from cluster.nearest import nearest_names
from deploy.change_order import ChangeAsked, await_orders, carry_out, changes_heard, order_waits
from deploy.cluster_record import ClusterRecord, all_records, read_record, recorded, state_folder
from deploy.guard import ASK_TO_END, guard
from deploy.interrupts import interruptible, uninterruptible
from deploy.local_model import with_local_model
from deploy.serve_cluster import ServeCluster

OK, FAILED, NOT_FOUND, INTERRUPTED = 0, 1, 4, 130
_DOWN_S = 60.0


def run_up(config_path: Path, detach: bool, deadline_s: float | None) -> int:
    """Starts the cluster and, unless detached, keeps it until interrupted. Returns the exit code."""
    config = with_local_model(load_config(config_path), must_exist=True)
    deadline = config.engine.start_deadline_s + 60.0 if deadline_s is None else deadline_s
    held = read_record(config.name)
    if held is not None:
        raise ConfigError(f"cluster {config.name!r} already runs (pid {held.pid}): `baton down {config.name}` stops it")
    return _run_detached(config_path, config.name, deadline) if detach else _run_here(config, deadline)


def run_down(name: str | None) -> int:
    """Ends the named cluster, or the only one. Returns the exit code."""
    running = all_records()
    records = [record for record in running if name in (None, record.name)]
    if not records:
        known = [record.name for record in running]
        print(nearest_names("cluster", name, known) if name else "no cluster runs", file=sys.stderr)
        return NOT_FOUND
    if len(records) > 1:
        names = ", ".join(record.name for record in records)
        raise ConfigError(f"several clusters run: name one of {names}")
    return _end(records[0])


def _run_here(config: Config, deadline_s: float) -> int:
    guard()
    cluster = ServeCluster(config, _say)
    with interruptible():
        try:
            cluster.start(deadline_s)
            record = ClusterRecord.of_this_process(config.name, cluster.http_url, cluster.grpc_address, cluster.gpus)
            await_orders(config.name)
            with recorded(record):
                _welcome(config, record)
                _serve(config.name)
        except KeyboardInterrupt:
            _say("stopping")
            return INTERRUPTED
        except StartFailed as error:
            print(f"baton up: {error}", file=sys.stderr)
            return FAILED
        finally:
            with uninterruptible():
                cluster.stop()
            _say("stopped")
    return OK


def _serve(name: str) -> None:
    """Until interrupted; carries out what is ordered meanwhile."""
    from deploy.redeploy import redeploy

    def change(config: Config, deadline_s: float) -> None:
        _say("a new configuration")
        redeploy(with_local_model(config, must_exist=True), deadline_s, _say)
        _say("runs with it")

    while True:
        try:
            with changes_heard():
                if order_waits(name):
                    raise ChangeAsked
                signal.pause()
        except ChangeAsked:
            carry_out(name, change)


def _run_detached(config_path: Path, name: str, deadline_s: float) -> int:
    log_path = state_folder() / f"{name}.log"
    command = [sys.executable, "-m", "deploy.cli.main", "up", str(config_path), "--deadline", str(deadline_s)]
    with log_path.open("wb") as log:
        owner = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    with interruptible():
        try:
            return _await_record(owner, name, log_path, deadline_s + _DOWN_S)
        except KeyboardInterrupt:
            # It leads a session of its own and hears no Ctrl-C; nothing else names it until it serves.
            owner.terminate()
            _say("stopping")
            owner.wait()
            raise


def _await_record(owner: subprocess.Popen[bytes], name: str, log_path: Path, within_s: float) -> int:
    """Until the owner has written down that its cluster serves. Returns the exit code."""
    give_up = time.monotonic() + within_s
    while time.monotonic() < give_up:
        if owner.poll() is not None:
            sys.stderr.write(log_path.read_text())
            return FAILED
        if (record := read_record(name)) is not None:
            print(f"HTTP {record.http}\ngRPC {record.grpc}\nlog  {log_path}\n`baton down {name}` stops it")
            return OK
        time.sleep(0.2)
    owner.terminate()
    print(f"baton up: not ready within its deadline; see {log_path}", file=sys.stderr)
    return FAILED


def _end(record: ClusterRecord) -> int:
    os.kill(record.pid, ASK_TO_END)
    give_up = time.monotonic() + _DOWN_S
    while time.monotonic() < give_up:
        if not record.alive:
            print(f"cluster {record.name!r} stopped")
            return OK
        time.sleep(0.1)
    print(f"cluster {record.name!r} (pid {record.pid}) did not stop in {_DOWN_S:.0f} s", file=sys.stderr)
    return FAILED


def _welcome(config: Config, record: ClusterRecord) -> None:
    body = json.dumps({"model": config.model.served_name, "messages": [{"role": "user", "content": "Hello!"}]})
    key = ' \\\n    -H "authorization: Bearer $BATON_TOKEN"' if config.security.guarded else ""
    print(
        f"\nBaton is ready.\n\n  HTTP  {record.http}/v1\n  gRPC  {record.grpc}\n\n"
        f"  curl {record.http}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    -d '{body}'\n\n"
        "Ctrl-C stops it.",
        flush=True,
    )


def _say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)
