"""When it pays to move a prompt's KV blocks while the prompt is still being computed.

    python -m tests.benchmarks.chunk_pipelining [--json] [--rounds N]

Two engines on this machine, the demo model in float32, chunks of 1,024 tokens. Time from the submission of the prefill
leg to decode's first token, with and without a prefetch beside the prefill; both take turns, figures are medians. The
memory of one machine is too fast a wire to tell, so the same is done with reads slowed down to the pace of a network.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.engine import PrefillInProgress, Role
from deploy.demo_model import write_demo_model
from kv_transfer.announcement import read_announcement
from tests.benchmarks.running_engine import CHUNK, RunningEngine
from tests.kv_transfer.stepped_engine import decode, prefetch, prefill

PROMPT_TOKENS = (1_000, 4_000, 8_000)
PACES_MIB_PER_S: tuple[float | None, ...] = (None, 400, 100, 25)
OUTPUT = 2
_CONFIG = {"chunk_pipelining": True, "nixl": {"mib_per_s": 1, "ceiling_s": 60}}

Figures = dict[str, float]


@dataclass
class Samples:
    """Milliseconds of each arm; `ahead` and `blocks` of all pipelined prompts."""

    off_ms: list[float] = field(default_factory=list)
    on_ms: list[float] = field(default_factory=list)
    ahead: int = 0
    blocks: int = 0

    def figures(self) -> Figures:
        return {
            "off_ms": round(statistics.median(self.off_ms), 1),
            "on_ms": round(statistics.median(self.on_ms), 1),
            "overlapped_share": round(self.ahead / max(1, self.blocks), 3),
        }


class Engines:
    def __init__(self, writer: RunningEngine, reader: RunningEngine, source: str, params: bytes) -> None:
        self._writer = writer
        self._reader = reader
        self._source = source
        self._params = params
        self._draw = random.Random(1)
        self._requests = 0

    def pace(self, mib_per_s: float | None) -> None:
        self._reader.ask("pace", mib_per_s)

    def sample(self, tokens: int, samples: Samples, *, pipelined: bool) -> None:
        """One request, from prefill to decode's first token."""
        self._requests += 1
        first_id, ahead_id, rest_id = (f"r{self._requests}/{leg}" for leg in ("prefill", "prefetch", "decode"))
        ids = [self._draw.randrange(4, 4096) for _ in range(tokens)]
        before = self._ahead()
        started = time.monotonic()
        self._writer.submit(prefill(first_id, ids, self._params))
        if pipelined:
            self._reader.submit(prefetch(ahead_id, ids, PrefillInProgress(self._source, 1, first_id)))
        first = self._writer.await_output(first_id).output
        after = ahead_id if pipelined else ""
        self._reader.submit(decode(rest_id, [*ids, *first.token_ids], OUTPUT, first.ticket, after, self._params))
        took_ms = (self._reader.await_output(rest_id).at - started) * 1000
        (samples.on_ms if pipelined else samples.off_ms).append(took_ms)
        if pipelined:
            samples.ahead += self._ahead() - before
            samples.blocks += -(-tokens // 32)

    def settle(self) -> None:
        for engine in (self._writer, self._reader):
            while engine.ask("kv_stats").leases:
                engine.ask("step")  # an idle engine looks at its leases only when it is made to
                time.sleep(0.01)

    def _ahead(self) -> int:
        return sum(t.blocks for t in self._reader.ask("kv_stats").transfers if t.outcome == "ahead")


@contextmanager
def engines() -> Iterator[Engines]:
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import SamplingParams

    from cluster.vllm_params import encode_params

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_model(folder / "model")
        writer = RunningEngine(folder / "model", Role.PREFILL, "prefill-0", folder, **_CONFIG)
        reader = RunningEngine(folder / "model", Role.DECODE, "decode-0", folder, **_CONFIG)
        try:
            for engine in (writer, reader):
                engine.wait_until_ready()
            told = read_announcement(folder / "prefill-0.json")
            assert told is not None
            params = encode_params(SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True, detokenize=False))
            yield Engines(writer, reader, told.address, params)
        finally:
            for engine in (writer, reader):
                engine.kill()


def measure(rounds: int) -> dict[str, object]:
    by_pace: dict[float | None, dict[int, Samples]] = {
        pace: {tokens: Samples() for tokens in PROMPT_TOKENS} for pace in PACES_MIB_PER_S
    }
    with engines() as pair:
        for pipelined in (False, True):  # connections, first touches
            pair.sample(2 * CHUNK, Samples(), pipelined=pipelined)
        for _ in range(rounds):
            for pace, by_tokens in by_pace.items():
                pair.pace(pace)
                for tokens, samples in by_tokens.items():
                    for pipelined in (False, True):
                        pair.sample(tokens, samples, pipelined=pipelined)
                        pair.settle()
    figures = {pace: {str(n): s.figures() for n, s in by_tokens.items()} for pace, by_tokens in by_pace.items()}
    return {
        "chunk_tokens": CHUNK,
        "prompt_tokens": figures.pop(None),
        "paced_mib_per_s": {f"{pace:g}": by_tokens for pace, by_tokens in figures.items() if pace is not None},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    paced = result["paced_mib_per_s"]
    assert isinstance(paced, dict)
    for pace, by_tokens in {"this machine": result["prompt_tokens"], **paced}.items():
        for tokens, figures in by_tokens.items():
            off, on, overlapped = figures["off_ms"], figures["on_ms"], figures["overlapped_share"]
            print(
                f"{pace:>12} MiB/s {tokens:>6} tokens  off {off:8.1f} ms  on {on:8.1f} ms  overlapped {overlapped:.0%}"
            )


if __name__ == "__main__":
    main()
