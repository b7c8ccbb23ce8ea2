"""One plain vLLM engine, run apart from the cluster: what every hand-off must equal.

As a module it is a process of its own: JSON requests on standard input, JSON token lists on the last line of output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_DEADLINE_S = 400


@dataclass(frozen=True)
class Prompt:
    """`seed` None means greedy."""

    token_ids: list[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0


def reference(model: Path, prompts: list[Prompt]) -> list[list[int]]:
    """The tokens that one engine in float32 gives for each prompt, one prompt at a time."""
    environment = os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-m", "tests.e2e.reference_engine", str(model)],
        input=json.dumps([asdict(prompt) for prompt in prompts]),
        capture_output=True,
        text=True,
        env=environment,
        timeout=_DEADLINE_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    tokens: list[list[int]] = json.loads(finished.stdout.splitlines()[-1])
    return tokens


def _main(model: str) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        block_size=32,
        kv_cache_memory_bytes=512 << 20,
        enable_prefix_caching=False,
    )
    tokens = []
    for prompt in [Prompt(**fields) for fields in json.load(sys.stdin)]:
        params = SamplingParams(
            max_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            seed=prompt.seed,
            presence_penalty=prompt.presence_penalty,
            repetition_penalty=prompt.repetition_penalty,
            min_tokens=prompt.min_tokens,
        )
        output = llm.generate([{"prompt_token_ids": prompt.token_ids}], params, use_tqdm=False)[0]
        tokens.append(list(output.outputs[0].token_ids))
    print(json.dumps(tokens))


if __name__ == "__main__":
    _main(sys.argv[1])
