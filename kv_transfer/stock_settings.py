"""vLLM's own NixlConnector in an engine of ours: its settings, its side channel, and what its blocks depend on.

The side channel is where peers ask for an engine's addresses; it has no authentication. Imports no vllm.
"""

from __future__ import annotations

import math
import platform
import socket
from pathlib import Path
from typing import Any

from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from kv_transfer.engine_settings import KV_ROLES, net_device_of
from kv_transfer.fingerprint import Fingerprint

CONNECTOR = "NixlConnector"
_CPU_INFO = Path("/proc/cpuinfo")


def stock_transfer_config(config: KvTransferConfig, role: Role, engine_id: str) -> dict[str, Any]:
    """vLLM's engine argument `kv_transfer_config`. `engine_id` must be new with every engine start: readers remember
    by it what they know of an engine's memory."""
    return {
        "kv_connector": CONNECTOR,
        "kv_role": KV_ROLES[role],
        "engine_id": engine_id,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": lease_seconds(config)},
    }


def lease_seconds(config: KvTransferConfig) -> int:
    """The connector counts in whole seconds."""
    return math.ceil(config.lease_s)


class SideChannel:
    """A free TCP port of `host`, kept free for one engine until `close`.

    The connector binds a port that it is told before it starts, and hangs when another process has it. A socket that is
    bound but does not listen keeps others away; the connector itself may still bind beside it.
    """

    def __init__(self, host: str) -> None:
        """Raises `OSError` when `host` is not an address of this machine."""
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
        except OSError:
            self._socket.close()
            raise
        self.host = host
        self.port: int = self._socket.getsockname()[1]

    def environment(self, config: KvTransferConfig) -> dict[str, str]:
        """What the engine's processes need; vLLM reads it when its connector is made."""
        wanted = {"VLLM_NIXL_SIDE_CHANNEL_HOST": self.host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.port)}
        device = net_device_of(config, self.host)
        return wanted if device is None else wanted | {"UCX_NET_DEVICES": device}

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()


def packing_fingerprint(device: str, cpu_info: Path = _CPU_INFO) -> Fingerprint:
    """What the connector's own check of its peer leaves out: on CPU, the instruction set decides how the bytes of a
    block are ordered, without a trace in their number. `device`: "cpu" or "gpu"."""
    packing = device
    if device == "cpu":
        flags = next((line for line in cpu_info.read_text().splitlines() if line.startswith("flags")), "")
        packing = f"{platform.machine()}{' amx' if 'amx_tile' in flags.split() else ''}"
    return Fingerprint.of({"connector": CONNECTOR, "packing": packing})
