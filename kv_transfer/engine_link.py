"""From the owner of an engine core to the connector inside it, over the connector's own KvSource.

Implements `cluster.kv_link.KvLink`; imports no vllm. Releases and ended leases are decided at once, but the engine
takes blocks back only on its own thread, at its next look. An idle engine looks after any utility call to its core:
while `stats` shows `pending_releases` above 0, the owner must make one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from cluster.errors import EngineFailed, TransferFailed
from cluster.kv_link import KvStats
from cluster.tls import PLAIN, Channels
from kv_transfer.announcement import Announcement, read_announcement
from kv_transfer.source_client import SourceClient

_LOOK_EVERY_S = 0.02


class EngineLink:
    """`announce_path`: the same as in the connector's settings. `start_s`: how long `address` waits; `call_s`: how
    long a call may take, seconds. `channels`: how the connector is dialled."""

    def __init__(
        self, announce_path: Path, start_s: float = 10.0, call_s: float = 5.0, channels: Channels = PLAIN
    ) -> None:
        self._path = announce_path
        self._start_s = start_s
        self._call_s = call_s
        self._channels = channels
        self._told: Announcement | None = None
        self._client: SourceClient | None = None

    async def address(self) -> str:
        return (await self._announcement()).address

    async def fingerprint(self) -> bytes:
        return (await self._announcement()).fingerprint

    async def stats(self) -> KvStats:
        client = await self._connected()
        try:
            return await client.stats()
        except TransferFailed as error:
            raise EngineFailed(f"the engine's connector does not answer: {error}") from error

    async def release(self, lease_id: str) -> None:
        client = await self._connected()
        try:
            await client.release(lease_id)
        except TransferFailed as error:
            raise EngineFailed(f"the engine's connector does not answer: {error}") from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _announcement(self) -> Announcement:
        try:
            async with asyncio.timeout(self._start_s):
                while self._told is None:
                    self._told = read_announcement(self._path)
                    if self._told is None:
                        await asyncio.sleep(_LOOK_EVERY_S)  # another process writes the file, once
        except TimeoutError:
            raise EngineFailed(f"the engine's connector did not announce itself within {self._start_s:g} s") from None
        return self._told

    async def _connected(self) -> SourceClient:
        if self._client is None:
            # Without a reader id: an owner reads nothing, and must not end a lease that someone reads.
            self._client = SourceClient(await self.address(), "", self._call_s, self._channels)
        return self._client
