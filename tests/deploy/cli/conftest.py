"""The command line run in this process, against a router that says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from tests.deploy.cli.stub_router import StubRouter, serving


class Ended:
    """How one run of the command ended."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


Baton: TypeAlias = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def router() -> AsyncIterator[StubRouter]:
    async with serving(StubRouter()) as stub:
        yield stub


@pytest.fixture
def baton() -> Baton:
    async def run(*arguments: str, stdin: str | bytes | None = None) -> Ended:
        result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run
