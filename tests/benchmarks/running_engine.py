"""A vLLM engine with our connector that steps by itself, in a process of its own, and whose transports can be slowed
down to the pace of a network."""

from __future__ import annotations

import asyncio
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from cluster.engine import EngineOutput, EngineRequest
from kv_transfer.transport import BlockRead
from tests.kv_transfer.engine_process import EngineProcess
from tests.kv_transfer.stepped_engine import SteppedChild

CHUNK = 1024
CONTEXT = 8192
_MIB = 1 << 20


@dataclass(frozen=True)
class Said:
    """An output and when it came, seconds of the machine's monotonic clock."""

    output: EngineOutput
    at: float


class RunningChild(SteppedChild):
    """Steps whenever it has something to do. Commands come in between."""

    engine_options: ClassVar[dict[str, Any]] = {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": CHUNK,
        "max_model_len": CONTEXT,
    }

    def serve(self, pipe: Connection) -> None:
        try:
            self._serve(pipe)
        except BaseException:
            pipe.send(("error", traceback.format_exc()))
            raise

    def _serve(self, pipe: Connection) -> None:
        while True:
            while pipe.poll(0 if self.scheduler.has_requests() else None):
                command, arguments = pipe.recv()
                pipe.send(("ok", getattr(self, command)(*arguments)))
            self.step()
            for attempt_id, outputs in list(self.outputs.items()):
                for output in outputs:
                    pipe.send(("said", Said(output, time.monotonic())))
                outputs.clear()
                if attempt_id not in self.scheduler.requests:
                    del self.outputs[attempt_id]

    def pace(self, mib_per_s: float | None) -> None:
        """From now on reads move so many MiB/s; None: as many as they can."""
        for transport in self._worker_half().transports:
            vars(transport).pop("read", None)
            if mib_per_s is not None:
                transport.read = _paced(
                    transport.read, self._worker_half()._mover._mover._reader.block_bytes, mib_per_s * _MIB
                )

    def kv_stats(self) -> Any:
        return self.half.stats()


def _paced(read: Any, block_bytes: int, bytes_per_s: float) -> Any:
    async def slowly(peer: Any, blocks: BlockRead) -> None:
        arrives = time.monotonic() + len(blocks.source) * block_bytes / bytes_per_s
        await read(peer, blocks)
        await asyncio.sleep(max(0.0, arrives - time.monotonic()))

    return slowly


class RunningEngine(EngineProcess):
    child = RunningChild

    def submit(self, request: EngineRequest) -> None:
        self.ask("submit", request)

    def await_output(self, attempt_id: str, within_s: float = 120.0) -> Said:
        """The next output of that attempt; those of others are dropped."""
        while True:
            said = self._said.pop(0) if self._said else self._receive(within_s)[1]
            if said.output.attempt_id == attempt_id:
                return said

    def ask(self, command: str, *arguments: Any) -> Any:
        self._pipe.send((command, arguments))
        while True:
            kind, value = self._receive(60.0)
            if kind == "ok":
                return value
            self._said.append(value)

    def __init__(self, *arguments: Any, **transfer: Any) -> None:
        super().__init__(*arguments, **transfer)
        self._said: list[Said] = []

    def _receive(self, within_s: float) -> tuple[str, Any]:
        assert self._pipe.poll(within_s), f"{self.process.name} does not answer"
        kind, value = self._pipe.recv()
        assert kind in ("ok", "said"), value
        return kind, value
