"""`baton chat`: ask the model from a terminal or a pipe."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, Stop, checked_text, command, fail
from deploy.cli.standard_input import read_standard_input

if TYPE_CHECKING:
    from deploy.cli.conversation import Conversation

_CONNECT_S = 5.0


@command
def chat(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Ask this once and end. Without it: standard input, or a conversation.")
    ] = None,
    endpoint: Endpoint = "127.0.0.1:9000",
    model: Annotated[str, typer.Option(help="The model's served name; not needed when one is served.")] = "",
    system: Annotated[str, typer.Option(help="Instructions that open the conversation.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = None,
    timeout: Timeout = 600.0,
) -> int:
    """Ask the model. In a conversation Ctrl-C stops the answer and Ctrl-D ends."""
    question = _question(prompt)

    from deploy.cli.conversation import Conversation
    from deploy.cli.endpoint import connected
    from protos.baton.v1 import inference_pb2

    sampling = inference_pb2.SamplingParameters(max_tokens=max_tokens, temperature=temperature)
    with connected(endpoint, min(timeout, _CONNECT_S)) as channel:
        conversation = Conversation(channel, endpoint, model, sampling)
        if system:
            conversation.instruct(system)
        if question is None:
            return _converse(conversation, timeout)
        return _answer(conversation, question, timeout)


def _question(prompt: list[str] | None) -> str | None:
    """What to ask once; None when a person sits there."""
    if prompt is None and sys.stdin.isatty():
        return None
    question = " ".join(prompt) if prompt else read_standard_input()
    if not question.strip():
        raise Stop("nothing to ask: name a prompt, or write one to standard input", Exit.USAGE)
    return question


def _converse(conversation: Conversation, timeout_s: float) -> Exit:
    import readline  # noqa: F401  line editing and history for input()

    while True:
        try:
            question = _line()
        except Stop as stop:
            fail(stop.message, stop.code)
            continue
        except KeyboardInterrupt:  # forgets the line, as a shell does
            print()
            continue
        except EOFError:
            print()
            return Exit.OK
        if question.strip():
            _answer_or_explain(conversation, question, timeout_s)


def _line() -> str:
    """What a person types. Raises EOFError at the end, `Stop` for what is no text."""
    try:
        return checked_text(input("> "), "this line")
    except UnicodeDecodeError as error:
        raise Stop(f"this line: not {error.encoding.upper()} text", Exit.USAGE) from error


def _answer_or_explain(conversation: Conversation, question: str, timeout_s: float) -> None:
    """A failed or stopped answer does not end the conversation."""
    try:
        _answer(conversation, question, timeout_s)
    except KeyboardInterrupt:
        print("(stopped)", file=sys.stderr)
    except Stop as stop:
        fail(stop.message, stop.code)


def _answer(conversation: Conversation, question: str, timeout_s: float) -> Exit:
    show = _visible if sys.stdout.isatty() else str
    try:
        with closing(conversation.ask(question, timeout_s)) as pieces:
            for piece in pieces:
                print(show(piece), end="", flush=True)
    finally:
        print(flush=True)
    return Exit.OK


def _visible(text: str) -> str:
    """Without control characters: what a model says must not steer the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
