"""A whole vLLM engine with our connector in a process of its own, driven over a pipe: parent's side and child's side.

The child runs vLLM's engine without its busy loop, so that a test decides when it steps and can look into it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from cluster.errors import TransferFailed
from cluster.kv_link import KvStats
from kv_transfer.engine_settings import connector_settings, kv_transfer_config
from tests.two_hosts import move_in

SECRET_ENV = "BATON_TICKET_SECRET"
SECRET = b"a secret that only the tests know"
BLOCK_SIZE = 32
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    SECRET_ENV: SECRET.decode(),
}
_START_S = 200.0
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where an engine lives: the address on which it listens, the namespace of its host if that is not this one, and
    what its environment has besides."""

    host: str = "127.0.0.1"
    namespace: str = ""
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Generated:
    """`external`: prompt tokens whose KV came over the connector. `ticket`: of a prefill."""

    tokens: list[int]
    external: int
    ticket: bytes = b""


HERE = Place()


class EngineProcess:
    """Commands are the public methods of its `child`."""

    child: type[EngineChild]

    def __init__(
        self, model: Path, role: Role, worker_id: str, folder: Path, place: Place = HERE, **transfer: Any
    ) -> None:
        """`transfer`: keys of the section `kv_transfer`."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        made = (str(model), role, worker_id, str(folder / f"{worker_id}.json"), transfer, place.host)
        arguments = (there, place, self.child, made)
        self.process = spawn.Process(target=_run, args=arguments, name=worker_id, daemon=True)
        self.process.start()
        there.close()

    def wait_until_ready(self) -> None:
        self._answer(_START_S)

    def ask(self, command: str, *arguments: Any) -> Any:
        self._pipe.send((command, arguments))
        return self._answer(_ANSWER_S)

    def _answer(self, within_s: float) -> Any:
        assert self._pipe.poll(within_s), f"{self.process.name} does not answer"
        outcome, value = self._pipe.recv()
        assert outcome == "ok", value
        return value

    def prefill(self, ids: list[int]) -> Generated:
        return self.ask("generate", ids, 1, {"export": True})

    def decode(self, ids: list[int], tokens: int, ticket: bytes) -> Generated:
        return self.ask("generate", ids, tokens, {"ticket": ticket})

    def alone(self, ids: list[int], tokens: int) -> list[int]:
        """What this engine says without any hand-off and without any cache."""
        self.ask("forget_prefixes")
        generated: Generated = self.ask("generate", ids, tokens, None)
        self.ask("forget_prefixes")
        return generated.tokens

    def stats(self) -> KvStats:
        return self.ask("settle")

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _run(pipe: Connection, place: Place, kind: type[EngineChild], made: tuple[Any, ...]) -> None:
    os.environ |= _ENVIRONMENT | dict(place.environment)
    if place.namespace:
        move_in(place.namespace)
        os.environ["VLLM_HOST_IP"] = place.host
    try:
        child = kind(*made)
        pipe.send(("ok", None))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise
    child.serve(pipe)


class EngineChild:
    """`engine_options`: arguments of the engine."""

    engine_options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, model: str, role: Role, worker_id: str, announce_path: str, transfer: Any, host: str = HERE.host
    ) -> None:
        from vllm import LLM

        settings = connector_settings(
            KvTransferConfig.model_validate(transfer),
            worker_id=worker_id,
            epoch=1,
            listen_host=host,
            advertise_host=host,
            announce_path=announce_path,
            secret_env=SECRET_ENV,
        )
        options = {"max_model_len": 4096, "kv_cache_memory_bytes": 256 << 20} | self.engine_options
        self.llm = LLM(
            model,
            dtype="float32",
            enforce_eager=True,
            block_size=BLOCK_SIZE,
            kv_transfer_config=kv_transfer_config(settings, role),
            **options,
        )
        self.core: Any = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.half = self.scheduler.connector.scheduler
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.all_blocks = self.pool.get_num_free_blocks()

    def serve(self, pipe: Connection) -> None:
        """Obeys the parent until this process is ended."""
        while True:
            command, arguments = pipe.recv()
            try:
                pipe.send(("ok", getattr(self, command)(*arguments)))
            except BaseException:
                pipe.send(("error", traceback.format_exc()))

    def generate(self, ids: list[int], tokens: int, transfer: Any) -> Generated:
        return self.generate_many([(ids, tokens, transfer)])[0]

    def generate_many(self, requests: list[tuple[list[int], int, Any]]) -> list[Generated]:
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids, _, _ in requests],
            [self._params(tokens, transfer) for _, tokens, transfer in requests],
            use_tqdm=False,
        )
        return [_generated(output) for output in outputs]

    def abort_while_pulling(self, ids: list[int], ticket: bytes) -> None:
        """Leaves the request once the scheduler waits for its blocks; `settle` then waits for what is left of it."""
        self.llm.llm_engine.add_request("aborted", {"prompt_token_ids": ids}, self._params(4, {"ticket": ticket}))
        self.llm.llm_engine.step()
        waiting = {request.status.name for request in self.scheduler.requests.values()}
        assert waiting == {"WAITING_FOR_REMOTE_KVS"}, waiting
        self.llm.llm_engine.abort_request(list(self.scheduler.requests), internal=True)

    def refuse_before_it_begins(self, ids: list[int], ticket: bytes) -> None:
        """The request is aborted before the scheduler has looked at it."""
        self.llm.llm_engine.add_request("refused", {"prompt_token_ids": ids}, self._params(4, {"ticket": ticket}))
        self.llm.llm_engine.abort_request(list(self.scheduler.requests), internal=True)

    def settle(self) -> KvStats:
        """Steps as the busy loop would until nothing is left to do; then nothing may be left behind."""
        end = time.monotonic() + 30
        stats: KvStats = self.half.stats()
        # Work is looked for after the counts: a lease that ends in between has its step, and is counted once more.
        while self.scheduler.has_requests():
            assert time.monotonic() < end, f"requests for ever: {list(self.scheduler.requests)}"
            self.llm.llm_engine.step()
            time.sleep(0.001)
            stats = self.half.stats()
        self.half.check_idle()
        if not stats.leases:
            assert self.pool.get_num_free_blocks() == self.all_blocks, "blocks are held that nobody leases"
        return stats

    def break_transports(self, *faults: tuple[str, float]) -> None:
        """From now on a read over each of these brings such a share of its blocks and then fails. A fresh start for
        all: what was learnt before is forgotten."""
        worker = self._worker_half()
        for transport in worker.transports:
            vars(transport).pop("read", None)
            if (share := dict(faults).get(transport.name)) is not None:
                transport.read = _half_read(transport.read, share)
        worker._mover._mover._reach._circuits._circuits.clear()

    def use_only(self, *transports: str) -> None:
        """From now on pulls know of these transports alone; of all, without any."""
        mover = self._worker_half()._mover._mover
        forbid = {"nixl", "grpc"}.difference(transports) if transports else set()
        mover._rules = mover._reach._rules = replace(mover._rules, forbid=frozenset(forbid))

    def check_idle(self) -> None:
        """Waits until nothing is left of pulls and reads that have ended, on either side."""
        worker, end = self._worker_half(), time.monotonic() + 10
        while True:
            try:
                worker._mover._mover.check_idle()
                for transport in worker.transports:
                    told = repr(getattr(transport, "_server", transport)) + repr(transport)
                    assert "streams=" not in told or "streams=0" in told, told
                    assert "reads=" not in told or "reads=0" in told, told
                return
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _worker_half(self) -> Any:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return get_kv_transfer_group().worker

    def flip_byte(self, layer: int, block_id: int, offset: int) -> None:
        runner = self.core.model_executor.driver_worker.worker.model_runner
        runner.kv_caches[layer][block_id].view(-1).view(_byte_type())[offset] ^= 0x40

    def let_leases_expire(self) -> None:
        book = self.half._book
        clock = book._clock
        book._clock = lambda: clock() + 3600.0
        self.settle()
        book._clock = clock

    def forget_prefixes(self) -> None:
        assert self.llm.reset_prefix_cache()

    def _params(self, tokens: int, transfer: Any) -> Any:
        from vllm import SamplingParams

        extra = {"kv_transfer_params": transfer} if transfer else None
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=extra, detokenize=False)


EngineProcess.child = EngineChild


def _generated(output: Any) -> Generated:
    ticket = (output.kv_transfer_params or {}).get("ticket", b"")
    return Generated(list(output.outputs[0].token_ids), output.num_cached_tokens or 0, ticket)


def _half_read(read: Any, share: float) -> Any:
    async def broken(peer: Any, blocks: Any) -> None:
        some = int(len(blocks.source) * share)
        if some:
            await read(peer, replace(blocks, source=blocks.source[:some], target=blocks.target[:some]))
        raise TransferFailed(f"broken by the test after {some} blocks")

    return broken


def _byte_type() -> Any:
    import torch

    return torch.uint8
