"""Whether what moves KV blocks and what routers share can be used from here: NIXL with UCX, Redis."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from cluster.clock import RealClock
from cluster.config_store import StoreConfig
from cluster.errors import BatonError
from cluster.open_store import open_store
from deploy.doctor.check import Check, fail, ok, warn

_IMPORT_S = 90.0
_CONNECT_S = 2.0
_NOBODY = "baton-doctor"

# In a process of its own: NIXL loads UCX, which a broken installation may end the process with.
_TRY_NIXL = """
import json
from kv_transfer.nixl_agent import NixlAgent, configure_network
configure_network(None)
agent = NixlAgent()
print(json.dumps(agent.plugins))
agent.close()
"""


def nixl(command: tuple[str, ...] = (sys.executable, "-c", _TRY_NIXL), wanted: bool = True) -> Check:
    """`wanted`: the configuration may use it."""
    advice = "install the cpu or gpu extra; without NIXL blocks go over gRPC (kv_transfer.prefer: grpc)"
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_IMPORT_S)
    except subprocess.TimeoutExpired:
        return warn("nixl", f"did not start within {_IMPORT_S:g} s", advice)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("[")]
    if ran.returncode == 0 and lines:
        return ok("nixl", f"UCX works; plugins: {', '.join(json.loads(lines[-1]))}")
    words = ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"]
    return (fail if wanted else warn)("nixl", words[-1], advice)


def store(config: StoreConfig, cluster: str) -> Check:
    """Reached as a router reaches it."""
    if not config.shared:
        return ok("store", "none is configured: one router keeps its state in memory")
    try:
        asyncio.run(_reach(config, cluster))
    except BatonError as error:
        return fail("store", str(error), "check store.url, its password's environment variable, and the network")
    return ok("store", f"{config.url} answers")


async def _reach(config: StoreConfig, cluster: str) -> None:
    opened = open_store(config.model_copy(update={"deadline_s": _CONNECT_S}), cluster, RealClock())
    try:
        await opened.recall(_NOBODY)
    finally:
        await opened.close()
