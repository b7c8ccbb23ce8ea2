"""A real cluster with keys and TLS everywhere, as its users and operators meet it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import openai
import psutil
import pytest
import yaml

from protos.baton.v1 import admin_pb2, admin_pb2_grpc, kv_pb2, kv_pb2_grpc, worker_pb2, worker_pb2_grpc
from tests.certificates import Authority
from tests.keys import Made, made
from tests.live_cluster import BATON, START_S, LiveCluster, live_cluster, local_config

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(START_S + 100)]

ACME, OTHER, VIEW, OPERATE = made(tenant="acme"), made(tenant="other"), made(role="view"), made(role="operate")
PROMPT = "Two tenants ask the very same thing, word for word, and it is long enough to fill several blocks. " * 4


@dataclass(frozen=True)
class Guarded:
    cluster: LiveCluster
    authority: Authority
    keys_file: Path
    trusted: grpc.ChannelCredentials
    member: grpc.ChannelCredentials

    def baton(self, *arguments: str, key: Made | None, tls: bool = True) -> subprocess.CompletedProcess[str]:
        shown = {} if key is None else {"BATON_TOKEN": key.key}
        ca = {"BATON_TLS_CA": self.authority.path} if tls else {}
        command = [str(BATON), *arguments, "-e", self.cluster.grpc]
        return subprocess.run(command, env=os.environ | shown | ca, capture_output=True, text=True, timeout=60)

    def cached_tokens(self, key: Made, **fields: object) -> int:
        with openai.OpenAI(base_url=f"{self.cluster.http}/v1", api_key=key.key, timeout=60, max_retries=0) as client:
            answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=4, extra_body=fields)
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


@pytest.fixture(scope="module")
def guarded(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("security")
    authority = Authority(folder)
    public, inside = authority.sign("localhost"), authority.sign("baton")
    keys_file = folder / "keys.yaml"
    keys_file.write_text(yaml.safe_dump([ACME.raw, OTHER.raw, VIEW.raw]))
    security = {
        "keys": [OPERATE.raw],
        "keys_file": str(keys_file),
        "tls": {"cert": public.cert, "key": public.key},
        "cluster_tls": {"cert": inside.cert, "key": inside.key, "ca": authority.path},
    }
    config = local_config(demo_model, "guarded", security=security, kv_transfer={"prefer": "grpc"})
    ca, key, cert = (Path(path).read_bytes() for path in (authority.path, inside.key, inside.cert))
    trusted, member = grpc.ssl_channel_credentials(ca), grpc.ssl_channel_credentials(ca, key, cert)
    with live_cluster(config) as cluster:
        yield Guarded(cluster, authority, keys_file, trusted, member)


def test_users_need_a_key_and_probes_need_none(guarded: Guarded) -> None:
    http = guarded.cluster.http
    assert httpx.get(f"{http}/health").status_code == 200
    assert httpx.get(f"{http}/v1/models").status_code == 401
    for key, status in ((ACME, 200), (made(tenant="acme"), 401), (OPERATE, 403)):
        assert httpx.get(f"{http}/v1/models", headers={"authorization": key.bearer}).status_code == status


def test_tenants_share_no_block_whatever_their_clients_ask_for(guarded: Guarded) -> None:
    assert guarded.cached_tokens(ACME) == 0
    assert guarded.cached_tokens(ACME) > 0
    assert guarded.cached_tokens(OTHER) == 0
    assert guarded.cached_tokens(OTHER) > 0
    assert guarded.cached_tokens(OTHER, cache_salt="team") == 0
    assert guarded.cached_tokens(ACME, cache_salt="team") == 0


def test_blocks_moved_between_engines_over_their_encrypted_ports(guarded: Guarded) -> None:
    guarded.cached_tokens(ACME, cache_salt="to be moved")
    status = json.loads(guarded.baton("status", "-o", "json", key=VIEW).stdout)
    moved = {each["transport"]: each for each in status["counters"]["kvTransfers"] if each["outcome"] == "landed"}
    assert moved["grpc"]["blocks"] > 0
    assert all(worker["state"] == "ready" for worker in status["workers"])


def test_operators_see_with_one_key_and_act_with_another(guarded: Guarded) -> None:
    assert guarded.baton("status", key=VIEW).returncode == 0
    refused = guarded.baton("drain", "nobody", key=VIEW)
    assert (refused.returncode, "role operate" in refused.stderr) == (5, True)
    assert guarded.baton("drain", "nobody", key=OPERATE).returncode == 4
    for key in (None, ACME, made(role="operate")):
        assert guarded.baton("status", key=key).returncode == 5
    plain = guarded.baton("status", key=VIEW, tls=False)
    assert (plain.returncode, "--tls-ca" in plain.stderr) == (7, True)


def test_users_chat_over_grpc(guarded: Guarded) -> None:
    assert guarded.baton("chat", "--max-tokens", "4", "hello", key=ACME).returncode == 0
    assert guarded.baton("chat", "--max-tokens", "4", "hello", key=VIEW).returncode == 5


def test_a_key_that_leaves_the_file_works_no_more(guarded: Guarded) -> None:
    gone = made(tenant="leaving")
    before = guarded.keys_file.read_text()
    for content, statuses in ((before + yaml.safe_dump([gone.raw]), [401, 200]), (before, [200, 401])):
        draft = guarded.keys_file.with_suffix(".draft")
        draft.write_text(content)
        os.replace(draft, guarded.keys_file)
        until(guarded, gone, statuses)


def until(guarded: Guarded, key: Made, statuses: list[int]) -> None:
    """The first of them may be answered for a while yet, then the last."""
    seen = statuses[0]
    while seen == statuses[0]:
        seen = httpx.get(f"{guarded.cluster.http}/v1/models", headers={"authorization": key.bearer}).status_code
    assert seen == statuses[-1]


def test_no_port_of_any_process_answers_our_services_in_plain_text(guarded: Guarded) -> None:
    ports = listening_ports(guarded.cluster.pid)
    named = [("grpc.ssl_target_name_override", "baton")]
    assert answering(ports, grpc.insecure_channel) == []
    inside = answering(ports, lambda address: grpc.secure_channel(address, guarded.member, named))
    assert len(inside) == 4, "two workers, and the KvSource of each"
    shut_out = answering(inside, lambda address: grpc.secure_channel(address, guarded.trusted, named))
    assert shut_out == [], "without a certificate of the cluster"


def answering(ports: list[int], dial: Callable[[str], grpc.Channel]) -> list[int]:
    """Those behind which one of our services is."""
    with ThreadPoolExecutor(len(ports)) as pool:
        answers = list(pool.map(lambda port: _answers(dial(f"127.0.0.1:{port}")), ports))
    return [port for port, answer in zip(ports, answers, strict=True) if answer]


def listening_ports(pid: int) -> list[int]:
    """Of all that listens on an address that the loopback interface reaches."""
    owner = psutil.Process(pid)
    ports: set[int] = set()
    for process in (owner, *owner.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found = process.net_connections("tcp4") + process.net_connections("tcp6")
            ports |= {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}
    return sorted(ports)


def _answers(channel: grpc.Channel) -> bool:
    """Whether one of our services is behind it. Ray's own ports may speak gRPC too."""
    asked: tuple[Callable[[], object], ...] = (
        lambda: worker_pb2_grpc.WorkerStub(channel).Describe(worker_pb2.DescribeRequest(), timeout=2),
        lambda: kv_pb2_grpc.KvSourceStub(channel).Stats(kv_pb2.KvStatsRequest(), timeout=2),
        lambda: admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=2),
    )
    with channel:
        return any(_is_answered(ask) for ask in asked)


def _is_answered(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except grpc.RpcError as error:
        return "a key is needed here" in (error.details() or "")
    return True
