"""A line in front of a worker, as a network is: it can be cut, so that both ends hear of it, or go silent, so that none
does. Knows bytes, not what they mean."""

from __future__ import annotations

import asyncio
import contextlib

_CHUNK = 1 << 16


class CutLine:
    """Listens on `front` and passes everything on to `behind`, both (host, port)."""

    def __init__(self, front: tuple[str, int], behind: tuple[str, int]) -> None:
        self._front = front
        self._behind = behind
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, *self._front)

    async def cut(self, for_s: float) -> None:
        """Every connection breaks, and none can be made for so long."""
        await self._close_server()
        self._break()
        await asyncio.sleep(for_s)
        await self.start()

    async def silence(self, for_s: float) -> None:
        """Connections stay open and new ones are taken, but not a byte arrives for so long."""
        self._open.clear()
        await asyncio.sleep(for_s)
        self._open.set()

    async def close(self) -> None:
        await self._close_server()
        self._open.set()
        self._break()
        await asyncio.gather(*self._serving)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._open.wait()
            there_reader, there_writer = await asyncio.open_connection(*self._behind)
            self._writers.add(there_writer)
            try:
                ways = (self._carry(reader, there_writer), self._carry(there_reader, writer))
                tasks = [asyncio.create_task(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._drop(there_writer)
        except OSError:
            pass  # nobody is behind: the front hears of it by its connection's end
        finally:
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self._writers.discard(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await self._open.wait()
                writer.write(chunk)
                await writer.drain()

    def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
