"""The environment that vLLM's processes need, as a pure function: vLLM reads it while its configuration is made and
while its modules are imported, so it must stand before either. Imports no vllm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cluster.config import EngineConfig, ModelConfig

PLUGIN = "baton"


_NOTHING: Mapping[str, str] = {}


def environment_for(
    model: ModelConfig, engine: EngineConfig, inherited: Mapping[str, str], connector: Mapping[str, str] = _NOTHING
) -> dict[str, str]:
    """What to set on top of `inherited`. `connector`: what the KV connector needs."""
    wanted = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # our process has threads: a fork of it could dead-lock
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "1",  # as `vllm_events` reads them
    }
    if "VLLM_LOGGING_LEVEL" not in inherited:
        wanted["VLLM_LOGGING_LEVEL"] = "WARNING"
    if Path(model.path).is_dir():
        wanted |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if engine.device == "cpu":
        # Without the first, the platform turns the `uni` executor into `mp`, whose idle worker burns a core.
        wanted |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(engine.cpu_threads),
            # Else each process group of the one process keeps a thread that wakes 100 times a second.
            "TORCH_GLOO_LAZY_INIT": "1",
        }
    allowed = inherited.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        wanted["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}".strip(",")
    return wanted | dict(connector)


def prepare_environment(model: ModelConfig, engine: EngineConfig, connector: Mapping[str, str] = _NOTHING) -> None:
    """Sets it in this process, to be inherited by the engine's."""
    os.environ.update(environment_for(model, engine, os.environ, connector))
