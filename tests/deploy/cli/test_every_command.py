"""What holds for all commands alike: help, endpoints that do not answer, refuse or say nothing; and their page."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.every_command import EVERY, Path_, commands, formats, options, stub_call
from tests.deploy.cli.stub_router import StubRouter

HEAVY = ("ray", "vllm", "torch", "grpc", "numpy", "pydantic", "yaml", "rich", "asyncio", "cluster.config")
ROOT = Path(__file__).parents[3]
REMOTE = sorted(path for path, command in commands().items() if "endpoint" in options(command) and path != ("doctor",))


def test_no_command_is_forgotten() -> None:
    assert set(EVERY) == set(commands()), "put it into tests/deploy/cli/every_command.py, with arguments"


@pytest.mark.parametrize("path", sorted(EVERY), ids=" ".join)
async def test_help_says_what_a_command_does(baton: Baton, path: Path_) -> None:
    ended = await baton(*path, "--help")
    usage, _, about = ended.stdout.partition("\n\n")
    assert (ended.code, ended.stderr) == (0, "")
    assert usage.startswith("Usage: ")
    assert len(about.strip().splitlines()[0]) > 10


def test_no_help_loads_what_takes_long_to_load() -> None:
    """The clock would only tell how busy the machine is."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom deploy.cli.main import app\n"
        f"for path in {sorted(EVERY)}: CliRunner().invoke(app, [*path, '--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("path", REMOTE, ids=" ".join)
async def test_nobody_at_the_endpoint_is_one_line_and_exit_7(baton: Baton, path: Path_, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        began = time.monotonic()
        ended = await baton(*stub_call(path, tmp_path), "-e", f"127.0.0.1:{bound.getsockname()[1]}")
    assert (ended.code, ended.stdout) == (7, "")
    assert "cannot connect: Connection refused" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("path", REMOTE, ids=" ".join)
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
async def test_whom_the_router_refuses_hears_it_and_exits_5(
    baton: Baton, router: StubRouter, path: Path_, code: grpc.StatusCode, tmp_path: Path
) -> None:
    router.refusal = (code, "wrong token")
    ended = await baton(*stub_call(path, tmp_path), "-e", router.address)
    assert (ended.code, ended.stdout.strip()) == (5, "")
    assert "not allowed: wrong token" in ended.stderr


@pytest.mark.parametrize("path", REMOTE, ids=" ".join)
async def test_a_router_that_says_nothing_is_waited_for_as_long_as_allowed(
    baton: Baton, router: StubRouter, path: Path_, tmp_path: Path
) -> None:
    router.silent = True
    began = time.monotonic()
    ended = await baton(*stub_call(path, tmp_path), "-e", router.address, "--timeout", "0.3")
    assert (ended.code, ended.stdout.strip()) == (124, "")
    assert "no answer within 0.3 s" in ended.stderr
    assert time.monotonic() - began < 5.0


# All options that take seconds, but for goals that are planned for.
WAITS = sorted(
    (path, option.opts[0])
    for path, command in commands().items()
    for option in command.params
    if option.metavar == "SECONDS" and path != ("plan",)
)


@pytest.mark.parametrize(
    ("path", "option"), WAITS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
@pytest.mark.parametrize("seconds", ["inf", "nan", "86401"])
async def test_a_wait_that_is_no_time_is_a_usage_error(
    baton: Baton, path: Path_, option: str, seconds: str, tmp_path: Path
) -> None:
    ended = await baton(*stub_call(path, tmp_path), option, seconds)
    assert (ended.code, ended.stdout) == (2, "")
    assert f"'{option}'" in ended.stderr


def test_every_command_that_asks_a_router_bounds_its_wait() -> None:
    assert {(path, "--timeout") for path in REMOTE} <= set(WAITS)


def test_every_option_that_takes_seconds_is_known_by_its_metavar() -> None:
    named = {
        (path, f"--{name}")
        for path, command in commands().items()
        for name in ("deadline", "every")
        if name in options(command)
    }
    assert named <= set(WAITS)


async def test_a_doctor_whose_cluster_was_named_and_does_not_answer_fails(baton: Baton) -> None:
    ended = await baton("doctor", "--quick", "-e", "127.0.0.1:1")
    assert ended.code == 1
    assert "FAIL" in ended.stdout
    assert "cannot connect" in ended.stdout


@pytest.mark.parametrize("path", sorted(path for path in EVERY if formats(commands()[path])), ids=" ".join)
async def test_an_unknown_format_is_a_usage_error(baton: Baton, path: Path_, tmp_path: Path) -> None:
    ended = await baton(*stub_call(path, tmp_path), "-o", "xml")
    assert (ended.code, ended.stdout) == (2, "")


def test_the_page_of_the_command_line_has_every_command_with_an_example() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    listed = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("    baton ")]
    missing = [path for path in commands() if not any(tuple(words[1 : 1 + len(path)]) == path for words in listed)]
    assert missing == [], "docs/cli.md has no example of it"


def test_the_page_names_no_command_that_is_not_there() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    listed = [line.split() for line in page.splitlines() if line.startswith("    baton ")]
    known = commands()
    strange = [words for words in listed if not any(tuple(words[1 : 1 + at]) in known for at in (1, 2, 3))]
    assert [words for words in strange if not words[1].startswith("--")] == []
