"""The engine of a worker with its end of the hand-off attached: the one place that knows both."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from cluster.clock import Clock
from cluster.config import Config, PoolConfig, secret
from cluster.engine import Engine, Role
from cluster.simulated_engine import SimulatedEngine
from cluster.tls import cluster_channels
from cluster.vllm_environment import prepare_environment
from cluster.worker import WorkerSpec
from kv_transfer.engine_link import EngineLink
from kv_transfer.engine_settings import connector_settings, kv_transfer_config
from kv_transfer.simulated_handoff import SimulatedHandoff, SimulatedLink
from kv_transfer.stock_link import StockIdentity, StockLink
from kv_transfer.stock_settings import SideChannel, lease_seconds, packing_fingerprint, stock_transfer_config


async def build_engine(config: Config, pool: PoolConfig, clock: Clock, spec: WorkerSpec, folder: Path) -> Engine:
    """`folder` is private to this engine and must outlive it. The engine is not started. Raises `ConfigError`."""
    key = secret(config.security.ticket_secret_env)
    if config.engine.kind == "simulated":
        return SimulatedEngine(config.model, config.engine, clock, _simulated_handoff(config, spec, key, clock))
    prepare_environment(config.model, config.engine)
    if config.kv_transfer.connector == "vllm-nixl":
        return await asyncio.to_thread(_stock_engine, config, pool, spec, key, folder)
    return await asyncio.to_thread(_vllm_engine, config, pool, spec, folder)


def _vllm_engine(config: Config, pool: PoolConfig, spec: WorkerSpec, folder: Path) -> Engine:
    from cluster.vllm_core import VllmSpec  # takes many seconds, and a prepared environment
    from cluster.vllm_engine import VllmEngine
    from cluster.vllm_events import EventSockets

    announce_path = folder / "connector.json"
    settings = connector_settings(
        config.kv_transfer,
        worker_id=spec.worker_id,
        epoch=spec.epoch,
        listen_host=spec.listen_host,
        advertise_host=spec.advertise_host,
        announce_path=str(announce_path),
        secret_env=config.security.ticket_secret_env,
    )
    settings = dataclasses.replace(settings, tls=spec.tls)
    vllm_spec = VllmSpec(
        model=config.model,
        engine=config.engine,
        options=_options(config, pool, spec.role),
        gpus=pool.gpus_per_replica,
        kv_transfer=kv_transfer_config(settings, spec.role),
        events=EventSockets(folder),
    )
    return VllmEngine(vllm_spec, EngineLink(announce_path, channels=settings.channels()))


def _stock_engine(config: Config, pool: PoolConfig, spec: WorkerSpec, key: bytes, folder: Path) -> Engine:
    from cluster.vllm_core import VllmSpec
    from cluster.vllm_engine import VllmEngine
    from cluster.vllm_events import EventSockets

    channel = SideChannel(spec.advertise_host)
    vllm_spec = VllmSpec(
        model=config.model,
        engine=config.engine,
        options=config.engine.options | pool.engine_options,
        gpus=pool.gpus_per_replica,
        kv_transfer=stock_transfer_config(config.kv_transfer, spec.role, f"{spec.worker_id}/{spec.epoch}"),
        environment=channel.environment(config.kv_transfer),
        events=EventSockets(folder),
    )
    identity = StockIdentity(
        worker_id=spec.worker_id,
        epoch=spec.epoch,
        block_size=config.engine.block_size,
        lease_s=lease_seconds(config.kv_transfer),
        secret=key,
        fingerprint=packing_fingerprint(config.engine.device).digest,
    )
    link = StockLink(identity, channel)
    return VllmEngine(vllm_spec, link, link)


def _options(config: Config, pool: PoolConfig, role: Role) -> dict[str, object]:
    """Blocks can be pulled while a prompt is computed only where it is computed in chunks."""
    pipelined = config.kv_transfer.chunk_pipelining and role is Role.PREFILL
    return ({"enable_chunked_prefill": True} if pipelined else {}) | config.engine.options | pool.engine_options


def _simulated_handoff(config: Config, spec: WorkerSpec, key: bytes, clock: Clock) -> SimulatedHandoff:
    timing, transfer = config.engine.simulated, config.kv_transfer
    link = SimulatedLink(
        worker_id=spec.worker_id,
        epoch=spec.epoch,
        listen_host=spec.listen_host,
        advertise_host=spec.advertise_host,
        secret=key,
        block_size=config.engine.block_size,
        num_blocks=timing.num_blocks,
        transfer=transfer,
        block_s=timing.transfer_block_s,
        channels=cluster_channels(spec.tls),
    )
    return SimulatedHandoff(link, config.model.served_name, clock)
