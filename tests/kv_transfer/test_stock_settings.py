"""Settings of vLLM's own connector: what reaches the engine, and a port that nobody else gets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.config import EngineConfig, ModelConfig
from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from cluster.vllm_environment import environment_for
from kv_transfer.stock_settings import SideChannel, packing_fingerprint, stock_transfer_config


def test_each_role_gets_its_own_side_of_the_connector_and_our_lease() -> None:
    config = KvTransferConfig(connector="vllm-nixl", lease_s=12.4)
    made = stock_transfer_config(config, Role.PREFILL, "prefill-0/7")
    assert (made["kv_connector"], made["kv_role"], made["engine_id"]) == ("NixlConnector", "kv_producer", "prefill-0/7")
    assert made["kv_load_failure_policy"] == "recompute"
    assert made["kv_connector_extra_config"] == {"kv_lease_duration": 13}
    assert stock_transfer_config(config, Role.DECODE, "d")["kv_role"] == "kv_consumer"


def test_the_side_channel_reaches_the_environment_of_the_engine() -> None:
    channel = SideChannel("127.0.0.1")
    try:
        connector = channel.environment(KvTransferConfig(net_device="eth1"))
        environment = environment_for(ModelConfig(path="org/model"), EngineConfig(), {}, connector)
    finally:
        channel.close()
    assert environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"
    assert environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == str(channel.port)
    assert environment["UCX_NET_DEVICES"] == "eth1"


@pytest.mark.parametrize(("host", "device"), [("127.0.0.1", "lo"), ("10.1.2.3", None)])
def test_without_a_network_device_loopback_stays_loopback_and_else_ucx_chooses(host: str, device: str | None) -> None:
    channel = SideChannel("127.0.0.1")
    channel.close()
    channel.host = host
    assert channel.environment(KvTransferConfig()).get("UCX_NET_DEVICES") == device


def test_a_port_that_is_kept_can_be_bound_by_the_connector_and_by_nobody_else() -> None:
    channel = SideChannel("127.0.0.1")
    with socket.socket() as stranger, socket.socket() as connector:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", channel.port))
        connector.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the connector's messaging library does
        connector.bind(("127.0.0.1", channel.port))
        connector.listen()
    channel.close()
    channel.close()


def test_an_address_of_another_machine_is_refused_at_once() -> None:
    with pytest.raises(OSError, match="assign"):
        SideChannel("192.0.2.1")


def test_processors_that_pack_blocks_differently_have_different_fingerprints(tmp_path: Path) -> None:
    plain, tiles = tmp_path / "plain", tmp_path / "tiles"
    plain.write_text("processor : 0\nflags : fpu avx512f\n")
    tiles.write_text("processor : 0\nflags : fpu avx512f amx_bf16 amx_tile\n")
    assert packing_fingerprint("cpu", plain) == packing_fingerprint("cpu", plain)
    assert packing_fingerprint("cpu", plain).digest != packing_fingerprint("cpu", tiles).digest
    assert packing_fingerprint("gpu", plain) == packing_fingerprint("gpu", tiles) != packing_fingerprint("cpu", plain)
