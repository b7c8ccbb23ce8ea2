"""`baton chat`: one answer for a prompt or a pipe, a conversation on a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from deploy.cli.chat_command import _converse
from deploy.cli.conversation import Conversation
from protos.baton.v1 import inference_pb2
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter

COMMAND = [sys.executable, "-m", "deploy.cli.main", "chat"]
# Standard input becomes the controlling terminal, so that Ctrl-C is a signal.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from deploy.cli.main import main; main()"
ON_TERMINAL = [sys.executable, "-c", OWN_TERMINAL, "chat"]
WAIT_S = 20.0


def turns(router: StubRouter) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in router.asked[-1].chat.messages]


async def test_a_prompt_is_answered_once(baton: Baton, router: StubRouter) -> None:
    ended = await baton("chat", "-e", router.address, "Say", "hello")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "Hello!\n", "")
    assert turns(router) == [("user", "Say hello")]


async def test_standard_input_is_the_prompt_without_one(baton: Baton, router: StubRouter) -> None:
    ended = await baton("chat", "-e", router.address, stdin="first line\nsecond line\n")
    assert (ended.code, ended.stdout) == (0, "Hello!\n")
    assert turns(router) == [("user", "first line\nsecond line\n")]


async def test_options_reach_the_request(baton: Baton, router: StubRouter) -> None:
    options = ("--system", "Be brief.", "--model", "demo", "--max-tokens", "7", "--temperature", "0")
    await baton("chat", "-e", router.address, *options, "hi")
    request = router.asked[0]
    assert turns(router) == [("system", "Be brief."), ("user", "hi")]
    assert (request.model, request.sampling.max_tokens, request.sampling.temperature) == ("demo", 7, 0.0)
    assert request.sampling.HasField("temperature")


async def test_the_models_own_temperature_holds_unless_named(baton: Baton, router: StubRouter) -> None:
    await baton("chat", "-e", router.address, "hi")
    assert not router.asked[0].sampling.HasField("temperature")


async def test_nothing_to_ask_is_a_usage_error(baton: Baton, router: StubRouter) -> None:
    ended = await baton("chat", "-e", router.address, stdin="\n")
    assert (ended.code, router.asked) == (2, [])
    assert ended.stderr.startswith("baton: nothing to ask")


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (("caf\udce9",), None, "prompt: not UTF-8 text: 'caf\\udce9'"),
        (("--system", "\udcff", "hi"), None, "system: not UTF-8 text"),
        ((), b"caf\xe9\n", "standard input: not UTF-8 text: invalid continuation byte at byte 3"),
    ],
)
async def test_what_is_no_text_is_a_usage_error(
    baton: Baton, router: StubRouter, arguments: tuple[str, ...], stdin: bytes | None, says: str
) -> None:
    ended = await baton("chat", "-e", router.address, *arguments, stdin=stdin)
    assert (ended.code, ended.stdout, router.asked) == (2, "", [])
    assert (ended.stderr.count("\n"), says in ended.stderr) == (1, True)


def test_a_line_that_is_no_text_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed: list[str | Exception] = [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "caf\udce9", EOFError()]

    def type_next(prompt: str) -> str:
        line = typed.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    monkeypatch.setattr("builtins.input", type_next)
    channel = grpc.insecure_channel("127.0.0.1:1")  # never used: nothing of it is a question
    conversation = Conversation(channel, "127.0.0.1:1", "", inference_pb2.SamplingParameters())
    assert _converse(conversation, 1.0) == 0
    assert capsys.readouterr().err.splitlines() == [
        "baton: this line: not UTF-8 text",
        "baton: this line: not UTF-8 text: 'caf\\udce9'",
    ]
    channel.close()


@pytest.mark.parametrize("finish", ["error", "abort", ""])
async def test_an_answer_that_breaks_off_is_a_failure(baton: Baton, router: StubRouter, finish: str) -> None:
    router.finish = finish
    ended = await baton("chat", "-e", router.address, "hi")
    assert (ended.code, ended.stdout) == (1, "Hello!\n")
    assert "the answer broke off" in ended.stderr


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.NOT_FOUND, 4),
        (grpc.StatusCode.UNAVAILABLE, 7),
        (grpc.StatusCode.INVALID_ARGUMENT, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
    ],
)
async def test_a_refusal_keeps_the_routers_reason(
    baton: Baton, router: StubRouter, code: grpc.StatusCode, exit_code: int
) -> None:
    router.refusal = (code, "because")
    ended = await baton("chat", "-e", router.address, "hi")
    assert (ended.code, ended.stderr.count("\n"), "because" in ended.stderr) == (exit_code, 1, True)


async def test_an_answer_that_takes_too_long_times_out_and_is_cancelled(baton: Baton, router: StubRouter) -> None:
    router.finish = None
    ended = await baton("chat", "-e", router.address, "--timeout", "0.5", "hi")
    assert (ended.code, ended.stdout) == (124, "Hello!\n")
    await asyncio.wait_for(router.cancelled.wait(), WAIT_S)


async def test_an_interrupt_cancels_the_request(router: StubRouter) -> None:
    router.finish = None
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "-e", router.address, "hi", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        assert await process.stdout.readexactly(6) == b"Hello!"
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        await router.cancelled.wait()
    assert (process.returncode, stderr) == (130, b"")


async def test_a_conversation_remembers_stops_an_answer_and_ends(router: StubRouter) -> None:
    async with terminal("-e", router.address) as screen, asyncio.timeout(WAIT_S):
        await screen.until("> ")
        screen.type("one\n")
        await screen.until("Hello!", "> ")
        router.finish = None
        screen.type("two\n")
        await screen.until("Hello!")
        screen.type("\x03")
        await screen.until("(stopped)", "> ")
        await router.cancelled.wait()
        router.finish = "stop"
        screen.type("three\n")
        await screen.until("Hello!", "> ")
        screen.type("\x04")
        assert await screen.ended() == 0
    said = ("assistant", "Hello!")
    assert turns(router) == [("user", "one"), said, ("user", "two"), said, ("user", "three")]


async def test_a_failed_answer_does_not_end_the_conversation(router: StubRouter) -> None:
    router.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too busy")
    async with terminal("-e", router.address) as screen, asyncio.timeout(WAIT_S):
        await screen.until("> ")
        screen.type("one\n")
        await screen.until("too busy", "> ")
        router.refusal = None
        screen.type("two\n")
        await screen.until("Hello!", "> ")
        screen.type("\x04")
        assert await screen.ended() == 0
    assert turns(router) == [("user", "two")]


async def test_what_the_model_says_cannot_steer_the_terminal(router: StubRouter) -> None:
    router.pieces = ("\x1b]0;owned\x07", "plain\ttext\n", "\x9b2J")
    async with terminal("-e", router.address, "hi") as screen, asyncio.timeout(WAIT_S):
        assert await screen.ended() == 0
    assert "\x1b]0" not in screen.text
    assert "\ufffd]0;owned\ufffdplain\ttext" in screen.text


class Terminal:
    """A pseudo terminal with the command in it."""

    def __init__(self, process: asyncio.subprocess.Process, screen: int) -> None:
        self._process = process
        self._screen = screen
        self._more = asyncio.Event()
        self._closed = False
        self._seen = 0
        self.text = ""
        asyncio.get_running_loop().add_reader(screen, self._read)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    async def until(self, *texts: str) -> None:
        """Waits until each of `texts` has appeared after what was waited for before."""
        for text in texts:
            while (at := self.text.find(text, self._seen)) < 0:
                assert not self._closed, f"ended before {text!r}: {self.text!r}"
                self._more.clear()
                await self._more.wait()
            self._seen = at + len(text)

    async def ended(self) -> int:
        while not self._closed:
            self._more.clear()
            await self._more.wait()
        return await self._process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._screen, 4096)
        except OSError:  # how Linux says that the other side has closed
            data = b""
        if not data:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._screen)
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        self._more.set()


@asynccontextmanager
async def terminal(*arguments: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *ON_TERMINAL, *arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
        )  # fmt: skip
    finally:
        os.close(theirs)
    screen = Terminal(process, ours)
    try:
        yield screen
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
