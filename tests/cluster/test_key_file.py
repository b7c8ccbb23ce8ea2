"""The keys file: read at the start, and again once it has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from cluster.config_security import SecurityConfig
from cluster.errors import ConfigError
from cluster.key_file import LOOK_EVERY_S, CurrentKeys
from tests.keys import Made, made
from tests.unreadable_files import unreadable_files


class Keys:
    """A keys file, and those who read it on a clock that a test moves."""

    def __init__(self, path: Path, *in_file: Made, fixed: tuple[Made, ...] = ()) -> None:
        self.path, self.now = path, 0.0
        self.write(*in_file)
        config = SecurityConfig(keys=[key.entry for key in fixed], keys_file=str(path))
        self.current = CurrentKeys(config, lambda: self.now)

    def write(self, *keys: Made) -> None:
        """In place of the old file, as it is done for files that are read meanwhile."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(yaml.safe_dump([key.raw for key in keys]))
        os.replace(draft, self.path)

    def knows(self, key: Made) -> bool:
        return self.current.ring().find(key.key) == key.entry


OLD, NEW, FIXED = made(tenant="old"), made(tenant="new"), made(role="operate")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.yaml", OLD, fixed=(FIXED,))


def test_keys_of_file_and_configuration_count(keys: Keys) -> None:
    assert keys.knows(OLD)
    assert keys.knows(FIXED)
    assert not keys.knows(NEW)


def test_a_changed_file_counts_within_a_second_and_without_a_restart(keys: Keys) -> None:
    keys.write(NEW)
    assert keys.knows(OLD)
    keys.now += LOOK_EVERY_S
    assert keys.knows(NEW)
    assert not keys.knows(OLD)
    assert keys.knows(FIXED)


@pytest.mark.parametrize("content", ["{not: [yaml", "just text", "- {id: abc}", "", "# none yet\n", None])
def test_a_file_that_cannot_be_read_leaves_the_keys_as_they_were(
    keys: Keys, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys.path.unlink()
    if content is not None:
        keys.path.write_text(content)
    for _ in range(3):
        keys.now += LOOK_EVERY_S
        assert keys.knows(OLD)
    assert [record.getMessage()[:27] for record in caplog.records] == ["the keys stay as they were:"]
    keys.write(NEW)
    keys.now += LOOK_EVERY_S
    assert keys.knows(NEW)


def test_keys_that_could_not_be_read_for_a_moment_count_though_their_file_changed_no_more(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    keys.write(NEW)
    with unreadable_files():
        for _ in range(3):
            keys.now += LOOK_EVERY_S
            assert keys.knows(OLD)
    keys.now += LOOK_EVERY_S
    assert keys.knows(NEW)
    assert [record.getMessage()[:27] for record in caplog.records] == ["the keys stay as they were:"]


def test_an_empty_list_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("[]")
    assert len(CurrentKeys(SecurityConfig(keys_file=str(path)), lambda: 0.0).ring()) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "is empty; write"),
        ("{a: [", "not YAML"),
        ("keys: 3", "baton key new"),
        ("- {id: abc}", "0.id"),
    ],
)
def test_at_the_start_a_file_must_be_good(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "keys.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        CurrentKeys(SecurityConfig(keys_file=str(path)), lambda: 0.0)


def test_what_stands_in_a_bad_file_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([{"id": "0" * 12, "sha256": OLD.key, "tenant": "acme"}]))
    with pytest.raises(ConfigError) as caught:
        CurrentKeys(SecurityConfig(keys_file=str(path)), lambda: 0.0)
    assert OLD.key not in str(caught.value)
