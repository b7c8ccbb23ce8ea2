"""Commands and what they show a router: keys from the environment and files, certificates, and clear refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from cluster.key_ring import KeyRing
from cluster.tls import PLAIN, Channels, TlsChannels, TlsFiles
from protos.baton.v1 import admin_pb2_grpc, inference_pb2_grpc
from router.grpc_guard import GrpcGuard
from router.guard import Guard
from tests.certificates import Authority
from tests.deploy.cli.conftest import Baton
from tests.deploy.cli.stub_router import StubRouter
from tests.keys import made

USER, VIEW, OPERATE = made(tenant="acme"), made(role="view"), made(role="operate")
RING = KeyRing(key.entry for key in (USER, VIEW, OPERATE))
HINT = "your key comes from BATON_TOKEN or --token-file"


@asynccontextmanager
async def guarded(channels: Channels = PLAIN) -> AsyncIterator[str]:
    """A router that asks for keys; its address."""
    server, stub = grpc.aio.server(interceptors=[GrpcGuard(Guard(lambda: RING))]), StubRouter()
    admin_pb2_grpc.add_AdminServicer_to_server(stub, server)
    inference_pb2_grpc.add_InferenceServicer_to_server(stub, server)
    port = channels.open_port(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
async def router() -> AsyncIterator[str]:
    async with guarded() as address:
        yield address


async def test_without_a_key_commands_say_where_it_comes_from(baton: Baton, router: str) -> None:
    for arguments in (("status",), ("drain", "p1"), ("undrain", "p1"), ("explain", "r1"), ("chat", "hello")):
        ended = await baton(*arguments, "-e", router)
        assert (ended.code, ended.stdout.strip()) == (5, "")
        assert "a key is needed here" in ended.stderr
        assert HINT in ended.stderr


async def test_a_key_from_the_environment_opens_what_it_is_for(
    baton: Baton, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_TOKEN", VIEW.key)
    assert (await baton("status", "-e", router)).code == 0
    assert (await baton("explain", "r1", "-e", router)).code == 0
    ended = await baton("drain", "p1", "-e", router)
    assert ended.code == 5
    assert "this takes an operator's key with the role operate" in ended.stderr
    monkeypatch.setenv("BATON_TOKEN", USER.key)
    assert (await baton("chat", "hello", "-e", router)).stdout == "Hello!\n"
    assert (await baton("status", "-e", router)).code == 5


async def test_a_file_wins_over_the_environment(
    baton: Baton, router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text(f"{OPERATE.key}\n")
    monkeypatch.setenv("BATON_TOKEN", made(role="view").key)
    assert (await baton("status", "-e", router)).code == 5
    assert (await baton("drain", "p1", "-e", router, "--token-file", str(path))).code == 0
    monkeypatch.setenv("BATON_TOKEN_FILE", str(path))
    assert (await baton("drain", "p1", "-e", router)).code == 0


async def test_the_endpoint_may_come_from_the_environment(
    baton: Baton, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_ENDPOINT", router)
    monkeypatch.setenv("BATON_TOKEN", VIEW.key)
    assert (await baton("status")).code == 0


async def test_credentials_that_cannot_be_read_are_a_mistake_of_use(baton: Baton, router: str) -> None:
    for option in ("--token-file", "--tls-ca"):
        ended = await baton("status", "-e", router, option, "/nowhere/file")
        assert ended.code == 2
        assert "credentials: [Errno 2]" in ended.stderr


async def test_a_key_that_no_call_can_carry_is_a_mistake_of_use(
    baton: Baton, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("clé", "\udcff"):
        monkeypatch.setenv("BATON_TOKEN", key)
        ended = await baton("status", "-e", router)
        assert (ended.code, ended.stderr.count("\n"), "credentials: " in ended.stderr) == (2, 1, True)


async def test_over_tls_the_same_commands_work(baton: Baton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    signed, own = authority.sign("router"), authority.sign("operator")
    monkeypatch.setenv("BATON_TOKEN", OPERATE.key)
    async with guarded(TlsChannels(TlsFiles(signed.cert, signed.key, authority.path))) as address:
        ended = await baton("status", "-e", address)
        assert ended.code == 7
        assert "where it speaks TLS, --tls-ca names who signs its certificate" in ended.stderr
        ended = await baton("status", "-e", address, "--tls-ca", authority.path)
        assert ended.code == 7, "it asks for a certificate"
        monkeypatch.setenv("BATON_TLS_CERT", own.cert)
        monkeypatch.setenv("BATON_TLS_KEY", own.key)
        assert (await baton("status", "-e", address, "--tls-ca", authority.path)).code == 0
        monkeypatch.setenv("BATON_TLS_CA", authority.path)
        assert (await baton("drain", "p1", "-e", address)).code == 0
        monkeypatch.setenv("BATON_TLS_NAME", "another")
        ended = await baton("status", "-e", address)
        assert ended.code == 7
        assert "BATON_TLS_NAME" in ended.stderr


async def test_help_names_the_options_of_every_command_with_an_endpoint(baton: Baton) -> None:
    for command in ("status", "drain", "undrain", "explain", "chat"):
        shown = (await baton(command, "--help")).stdout
        assert "--token-file" in shown
        assert "--tls-ca" in shown
    assert "--token-file" not in (await baton("version", "--help")).stdout
