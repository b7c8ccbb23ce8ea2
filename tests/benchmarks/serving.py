"""What serving costs with prefill and decode apart, against one vLLM server on the same machine.

    python -m tests.benchmarks.serving [--json] [--rounds N]

Each round starts one arm, drives it at 1, 8 and 32 streams, stops it and does the same with the other; samples of all
rounds are put together. About 300 prompt tokens and 32 output tokens a request, the demo model in bf16.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil

from deploy.demo_model import write_demo_model
from deploy.free_port import free_port
from tests.benchmarks.streams import Samples, drive, random_prompts
from tests.live_cluster import ROOT, live_cluster, local_config

PROMPT_TOKENS, OUTPUT_TOKENS = 300, 32
REQUESTS = {1: 40, 8: 160, 32: 400}
IDLE_S = 20.0
SETTLE_S = 5.0
MODEL = ROOT / ".baton/demo-model"


@contextmanager
def baton_1p1d(model: Path) -> Iterator[tuple[str, int]]:
    """One router, one prefill worker, one decode worker, as `make serve` starts them."""
    with live_cluster(local_config(model, "bench")) as cluster:
        yield cluster.http, cluster.pid


@contextmanager
def vllm_single(model: Path, threads: int = 1) -> Iterator[tuple[str, int]]:
    """One vLLM API server with the executor that is fastest on CPU."""
    port = free_port()
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", "demo", "--max-model-len", "4096", "--enforce-eager",
        "--block-size", "32", "--kv-cache-memory-bytes", str(512 << 20), "--distributed-executor-backend", "uni",
        "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, server)
        yield url, server.pid
    finally:
        server.terminate()
        server.wait(60)


ARMS: dict[str, Callable[[Path], AbstractContextManager[tuple[str, int]]]] = {
    "baton_1p1d": baton_1p1d,
    "vllm_single": vllm_single,
}


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, object]:
    """The benchmark's result object; see the module docstring for what a round is."""
    if not MODEL.is_dir():
        write_demo_model(MODEL)
    samples = {arm: {streams: Samples() for streams in REQUESTS} for arm in ARMS}
    idle: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(rounds):
        for arm, start in ARMS.items():
            say(f"round {turn + 1}/{rounds}: starting {arm}")
            with start(MODEL) as (url, pid):
                _drive_all(url, seed=turn, into=samples[arm], say=say)
                time.sleep(SETTLE_S)  # what the load left to do is not idleness
                idle[arm].append(_cpu_share(pid, IDLE_S))
    return {
        "arms": {arm: {str(n): s.summary() for n, s in by_streams.items()} for arm, by_streams in samples.items()},
        "idle_core_share": {arm: round(sum(shares) / len(shares), 3) for arm, shares in idle.items()},
        "rounds": rounds,
    }


def _drive_all(url: str, seed: int, into: dict[int, Samples], say: Callable[[str], None]) -> None:
    for streams, count in REQUESTS.items():
        # The first requests of a size meet cold code and unopened connections in every arm; they are not counted.
        for counted, prompts in (
            (False, random_prompts(2 * streams, PROMPT_TOKENS, seed * 1000 + streams + 500)),
            (True, random_prompts(count, PROMPT_TOKENS, seed * 1000 + streams)),
        ):
            got = asyncio.run(drive(url, "demo", prompts, streams, OUTPUT_TOKENS))
            if counted:
                into[streams].add(got)
                say(f"  {streams} streams: {got.summary()}")


def _cpu_share(pid: int, seconds: float) -> float:
    """Cores used by a process and all below it while nothing is asked of them."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = sum(sum(p.cpu_times()[:2]) for p in processes)
    time.sleep(seconds)
    after = sum(sum(p.cpu_times()[:2]) for p in processes)
    return (after - before) / seconds


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 180
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise RuntimeError(f"the vLLM server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError("the vLLM server did not become healthy in 180 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    result = measure(arguments.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
