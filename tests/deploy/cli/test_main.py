"""The command as a whole: light to start, quiet about tracebacks, exact about exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import deploy.up
from cluster.errors import ConfigError, StartFailed
from deploy.demo_model import DEMO_DIGEST
from tests.deploy.cli.conftest import Baton

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"
BATON = [sys.executable, "-m", "deploy.cli.main"]
HEAVY = ("ray", "vllm", "torch", "grpc", "numpy", "pydantic", "yaml", "rich")


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import deploy.cli.main, sys; print([name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).parent / "baton"
    ran = subprocess.run([command, "version"], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "baton 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [["nope"], ["status", "--nope"], ["config", "validate"], ["status", "-o", "xml"]])
async def test_wrong_usage_exits_2(baton: Baton, arguments: list[str]) -> None:
    ended = await baton(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "Error: " in ended.stderr


async def test_help_names_every_command(baton: Baton) -> None:
    ended = await baton("--help")
    commands = ("up", "down", "status", "chat", "version", "config", "key", "model")
    assert [name for name in commands if f"\n  {name} " not in ended.stdout] == []


async def test_a_good_configuration_is_summed_up(baton: Baton) -> None:
    ended = await baton("config", "validate", str(EXAMPLES / "local.yaml"))
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout == (
        "valid: local: demo (.baton/demo-model), vllm engine on cpu; prefill 1, decode 1, router 1\n"
    )


async def test_an_edge_that_stands_open_because_it_was_accepted_is_named(baton: Baton) -> None:
    ended = await baton("config", "validate", str(EXAMPLES / "kuberay.yaml"))
    assert ended.code == 0
    lines = ended.stderr.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("baton: open, as security.allow_open accepts: ") for line in lines)


async def test_an_edge_that_stands_open_unasked_is_a_mistake_with_its_reason(baton: Baton, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\nrouter: {http_host: 0.0.0.0}\n")
    ended = await baton("config", "validate", str(file))
    assert (ended.code, ended.stdout) == (2, "")
    assert "router.http_host is 0.0.0.0, and nobody is asked for a key: set security.keys" in ended.stderr


async def test_every_mistake_of_a_configuration_is_a_line(baton: Baton, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\nengin: {}\nrouter: {replicas: 0}\n")
    ended = await baton("config", "validate", str(file))
    assert (ended.code, ended.stdout) == (2, "")
    assert [line.split(": ")[:3] for line in ended.stderr.splitlines()] == [
        ["baton", str(file), "router.replicas"],
        ["baton", str(file), "engin"],
    ]


@pytest.mark.parametrize("form", ["json", "yaml"])
async def test_the_verdict_on_a_configuration_is_a_document(baton: Baton, tmp_path: Path, form: str) -> None:
    ended = await baton("config", "validate", str(EXAMPLES / "kuberay.yaml"), "-o", form)
    good = yaml.safe_load(ended.stdout)
    assert (ended.code, good["kind"], good["valid"], good["mistakes"]) == (0, "ConfigVerdict", True, [])
    assert len(good["openEdges"]) == len(ended.stderr.splitlines()) == 5
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\nengin: {}\n")
    ended = await baton("config", "validate", str(file), "-o", form)
    bad = yaml.safe_load(ended.stdout)
    assert (ended.code, bad["valid"], bad["file"]) == (2, False, str(file))
    assert [f"baton: {mistake}" for mistake in bad["mistakes"]] == ended.stderr.splitlines()


@pytest.mark.parametrize(
    ("shell", "begins"), [("bash", "_baton_completion"), ("zsh", "#compdef baton\n"), ("fish", "")]
)
async def test_a_completion_script_asks_this_command(baton: Baton, shell: str, begins: str) -> None:
    ended = await baton("completion", shell)
    assert (ended.code, ended.stdout.startswith(begins)) == (0, True)
    assert f"_BATON_COMPLETE=complete_{shell}" in ended.stdout


def test_what_the_bash_script_asks_is_answered() -> None:
    """As the script of `baton completion bash` asks, which runs in shells where it was installed long ago."""
    asking = {"_BATON_COMPLETE": "complete_bash", "COMP_WORDS": "baton get w", "COMP_CWORD": "2"}
    ran = subprocess.run(BATON, env=os.environ | asking, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == ["workers"]


async def test_where_typer_writes_no_completion_the_command_says_so(
    baton: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    ended = await baton("completion", "bash")
    assert (ended.code, ended.stdout) == (1, "")
    assert "writes no completion for bash" in ended.stderr


def test_a_file_whose_name_is_no_text_is_read_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "caf\udce9.yaml"
    file.write_text("model: {path: m}\n")
    ran = subprocess.run(
        [*BATON, "config", "show", str(file), "-o", "table"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "caf\\udce9.yaml" in ran.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("drain", "\udcff"),
        ("describe", "worker", "\udcff"),
        ("explain", "\udcff"),
        ("get", "requests", "--tenant", "\udcff"),
        ("scale", "\udcff=2"),
        ("key", "new", "--tenant", "\udcff"),
        ("status", "-e", "\udcff:9000"),
    ],
    ids=" ".join,
)
async def test_names_that_are_no_text_are_a_usage_error(baton: Baton, arguments: tuple[str, ...]) -> None:
    ended = await baton(*arguments)
    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "not UTF-8 text" in ended.stderr


async def test_kuberay_manifests_are_one_yaml_stream(baton: Baton) -> None:
    ended = await baton("config", "render", "kuberay", str(EXAMPLES / "kuberay.yaml"), "--image", "registry/baton:7")
    documents = list(yaml.safe_load_all(ended.stdout))
    assert [document["kind"] for document in documents] == ["RayService", "Service"]
    assert ended.stdout.count("image: registry/baton:7\n") == 4
    assert "  serveConfigV2: |\n" in ended.stdout
    assert "&id" not in ended.stdout


async def test_kuberay_manifests_are_one_list_as_json(baton: Baton) -> None:
    ended = await baton("config", "render", "kuberay", str(EXAMPLES / "kuberay-cpu.yaml"), "-o", "json")
    document: dict[str, Any] = json.loads(ended.stdout)
    assert (document["kind"], len(document["items"])) == ("List", 2)


async def test_what_kubernetes_cannot_run_is_named(baton: Baton) -> None:
    ended = await baton("config", "render", "kuberay", str(EXAMPLES / "local.yaml"))
    assert (ended.code, ended.stdout) == (2, "")
    keys = {line.split(": ")[1] for line in ended.stderr.splitlines()}
    assert keys >= {"prefill.listen_host", "decode.listen_host", "router.http_host", "router.grpc_host", "model.path"}


async def test_the_demo_model_prints_its_digest(baton: Baton, tmp_path: Path) -> None:
    ended = await baton("model", "demo", str(tmp_path / "m"))
    assert (ended.code, ended.stdout) == (0, f"{DEMO_DIGEST}\n")


async def test_the_demo_model_does_not_overwrite(baton: Baton, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    ended = await baton("model", "demo", str(tmp_path))
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert "already holds something else" in ended.stderr


async def test_up_and_down_pass_on_what_they_are_told(baton: Baton, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def answering(code: int) -> Callable[..., int]:
        def run(*arguments: object) -> int:
            calls.append(arguments)
            return code

        return run

    monkeypatch.setattr(deploy.up, "run_up", answering(0))
    monkeypatch.setattr(deploy.up, "run_down", answering(4))
    assert (await baton("up", "c.yaml", "--detach", "--deadline", "30")).code == 0
    assert (await baton("up", "c.yaml")).code == 0
    assert (await baton("down", "mine")).code == 4
    assert (await baton("down")).code == 4
    assert calls == [(Path("c.yaml"), True, 30.0), (Path("c.yaml"), False, None), ("mine",), (None,)]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("bad key"), 2), (StartFailed("no engine\nits last words"), 1), (KeyboardInterrupt(), 130)],
)
async def test_a_failed_up_is_told_in_its_own_words(
    baton: Baton, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(deploy.up, "run_up", fail)
    ended = await baton("up", "c.yaml")
    assert (ended.code, ended.stdout) == (code, "")
    assert ended.stderr == "".join(f"baton: {line}\n" for line in str(error).splitlines())


async def test_what_the_system_says_of_a_file_is_one_line_and_a_failure(
    baton: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "/srv/models")

    monkeypatch.setattr(deploy.up, "run_up", denied)
    ended = await baton("up", "c.yaml")
    assert (ended.code, ended.stderr) == (1, "baton: /srv/models: Permission denied\n")


@pytest.mark.parametrize("bug", [OSError("of our own"), ValueError("x")])
async def test_our_own_mistakes_keep_their_traceback(
    baton: Baton, monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    def fail(*_: object) -> int:
        raise bug

    monkeypatch.setattr(deploy.up, "run_up", fail)
    with pytest.raises(type(bug)):
        await baton("up", "c.yaml")
