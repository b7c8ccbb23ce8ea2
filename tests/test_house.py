"""Rules of the house that a machine can check: file length, fresh protocol code, complete packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOS = ROOT / "protos/baton/v1"
PACKAGES = ("cluster", "kv_transfer", "prefill_workers", "decode_workers", "router", "deploy")
MOST_LINES = 400


def _modules() -> list[Path]:
    return [path for name in (*PACKAGES, "tests") for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_passes_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_every_package_is_named_in_the_build() -> None:
    named = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for name in PACKAGES
        for init in (ROOT / name).rglob("__init__.py")
    }
    assert found <= named


def test_every_module_says_what_it_owns() -> None:
    mute = [p for p in _modules() if p.name != "__init__.py" and not p.read_text().startswith('"""')]
    assert mute == []


def test_generated_protocol_code_is_fresh(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    command = [
        sys.executable, "-m", "grpc_tools.protoc", "-I", ".",
        f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}",
        f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}",
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        *(str(path.relative_to(ROOT)) for path in sorted(PROTOS.glob("*.proto"))),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    made = {path.name: path.read_text() for path in (tmp_path / "protos/baton/v1").iterdir()}
    committed = {name: (PROTOS / name).read_text() for name in made}
    assert made == committed, "run `make protos` and commit what it writes"
