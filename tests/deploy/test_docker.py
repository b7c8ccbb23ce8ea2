"""The images, as far as can be said without building them: pinned bases and packages, an unprivileged user."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
LOCKS = {"cpu.Dockerfile": "cpu.lock", "gpu.Dockerfile": "gpu.lock"}


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_the_base_and_every_package_have_an_exact_version(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:${PYTHON}"}
    assert f"--constraint requirements/{LOCKS[dockerfile.name]}" in text


def test_the_last_stage_runs_as_the_user_that_the_pods_run_as(dockerfile: Path) -> None:
    last = dockerfile.read_text().rpartition("\nFROM ")[2]
    assert "useradd --uid 1000" in last
    assert re.search(r"^USER 1000:1000$", last, re.MULTILINE)
    assert "COPY . ." not in last  # no sources, no build tools of ours


def test_serve_starts_the_haproxy_of_the_image(dockerfile: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (path,) = re.findall(r"RAY_SERVE_HAPROXY_BINARY_PATH=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    assert (Path(path).parent, Path(path).name in scripts) == (Path("/opt/baton/bin"), True)


def test_both_locks_have_the_versions_that_the_adapters_are_written_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("cpu", "gpu"):
        lock = (ROOT / f"requirements/{extra}.lock").read_text().splitlines()
        exact = [each for each in extras[extra] if "==" in each]
        assert exact
        assert {each for each in exact if not any(line.startswith(each) for line in lock)} == set()


def test_the_chart_runs_the_version_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((ROOT / "deploy/helm/baton/Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
    assert f"ray[serve]=={chart['annotations']['rayVersion']}" in project["dependencies"]
    for path in DOCKERFILES:
        assert f"baton-serve:{project['version']}-{path.stem}" in path.read_text()
