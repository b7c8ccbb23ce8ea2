"""vLLM's own OpenAI server, built over the fleet from our configuration.

Makes the pieces and nothing else: which routes are open is the HTTP edge's business, tokens are the fleet's.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.anthropic import api_router as messages_routes
from vllm.entrypoints.anthropic import serving as messages_serving
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion import serving as chat_serving
from vllm.entrypoints.openai.completion import serving as completion_serving
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.utils.argparse_utils import FlexibleArgumentParser

from cluster.config import Config
from cluster.errors import ConfigError
from router.caller import current_caller
from router.dispatch import Dispatch
from router.text_generation import TextGeneration
from router.vllm_fleet import FleetLLM
from router.vllm_text import VllmText

_TASKS = ("generate",)


@dataclass(frozen=True, slots=True)
class Frontend:
    """`app`: vLLM's FastAPI application, all its routes. `text`: the same model for edges without HTTP. `close` ends
    the threads that tokenise."""

    app: ASGIApp
    text: TextGeneration
    close: Callable[[], None]


async def build_frontend(config: Config, dispatch: Dispatch) -> Frontend:
    """Loads tokenizer and chat template, no weights. Raises `ConfigError` for engine options unknown to vLLM."""
    args = _arguments(config)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    vllm_config = _frontend_config(engine_args)
    args.structured_outputs_config = vllm_config.structured_outputs_config
    _log_server_errors_only()
    llm = FleetLLM(vllm_config, dispatch)
    app = build_app(args, _TASKS, vllm_config.model_config)
    await init_app_state(llm, app.state, args, _TASKS)
    text = VllmText(config.model.served_name, llm, app.state.openai_serving_completion, app.state.openai_serving_chat)
    return Frontend(app, text, llm.shutdown)


class _NotTheClientsFault(logging.Filter):
    """vLLM logs every error of a stream with its stack; a client's mistake has been answered and needs none, nor does
    what follows from an error that the caller has heard."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        heard = error is not None and current_caller().error is not None
        return not (heard or isinstance(error, (VLLMClientError, GracefulHTTPError)))


def _log_server_errors_only() -> None:
    for module in (chat_serving, completion_serving, messages_routes, messages_serving):
        logging.getLogger(module.__name__).addFilter(_NotTheClientsFault())


def _frontend_config(engine_args: AsyncEngineArgs) -> VllmConfig:
    """What tokenising and checking of parameters read: no device, no parallelism, no cache. A router needs no GPU."""
    model_config = engine_args.create_model_config()
    model_config.quantization = None  # would check the device for kernels that no router runs
    return VllmConfig(
        model_config=model_config,
        structured_outputs_config=engine_args.create_structured_outputs_config(),
        observability_config=engine_args.create_observability_config(),
    )


def _arguments(config: Config) -> Namespace:
    """The server's arguments: its defaults, then our engine options, then what Baton itself decides."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for name, value in config.engine.options.items():
        if not hasattr(args, name):
            raise ConfigError(f"engine.options.{name}: vLLM has no such engine argument")
        setattr(args, name, value)
    args.model = config.model.path
    args.served_model_name = [config.model.served_name]
    args.max_model_len = config.model.max_model_len
    args.dtype = config.model.dtype
    args.chat_template = config.router.chat_template
    args.tool_call_parser = config.router.tool_call_parser
    args.enable_auto_tool_choice = config.router.tool_call_parser is not None
    args.reasoning_parser = config.router.reasoning_parser or args.reasoning_parser
    args.enable_prompt_tokens_details = True
    args.disable_fastapi_docs = True
    args.enable_log_requests = False
    args.disable_log_stats = True
    return args
