"""Files that change while they count, and reads that fail for a while."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.watched_files import Unreadable, WatchedFiles, read_file


class Watched:
    """Two files; what is read of them is their text. Reads fail while `failing` says why."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "one", folder / "other"]
        for path in self.paths:
            path.write_text(path.name)
        self.failing: ConfigError | None = None
        self.reads = 0
        self.files = WatchedFiles([str(path) for path in self.paths], self._read, "the words")

    def _read(self) -> list[str]:
        self.reads += 1
        if self.failing is not None:
            raise self.failing
        return [read_file(str(path), "section.words").decode() for path in self.paths]

    def write(self, text: str) -> None:
        draft = self.paths[0].with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self.paths[0])


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_files_are_read_again_once_one_of_them_has_changed(watched: Watched) -> None:
    assert watched.files.content == ["one", "other"]
    assert [watched.files.renew() for _ in range(3)] == [False, False, False]
    assert watched.reads == 1
    watched.write("new")
    assert [watched.files.renew() for _ in range(3)] == [True, False, False]
    assert watched.files.content == ["new", "other"]


def test_new_permissions_are_a_change_though_the_content_is_the_same(watched: Watched) -> None:
    before = os.stat(watched.paths[1])
    while os.stat(watched.paths[1]).st_ctime_ns == before.st_ctime_ns:  # the clock of files is coarse
        os.chmod(watched.paths[1], 0o600)
    assert os.stat(watched.paths[1]).st_mtime_ns == before.st_mtime_ns
    assert watched.files.renew()


def test_a_read_that_failed_is_tried_at_every_look_and_complained_of_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write("new")
    watched.failing = Unreadable("section.words: cannot be read: Permission denied")
    assert [watched.files.renew() for _ in range(3)] == [False, False, False]
    assert watched.reads == 4
    assert watched.files.content == ["one", "other"]
    assert complaints(caplog) == [f"the words stay as they were: {watched.failing}"]
    watched.failing = None
    assert watched.files.renew(), "although nothing at the file has changed since"
    assert watched.files.content == ["new", "other"]


def test_the_same_failure_later_is_complained_of_again(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("new", "newer"):
        watched.write(text)
        watched.failing = Unreadable("section.words: cannot be read: Permission denied")
        assert not watched.files.renew()
        watched.failing = None
        assert watched.files.renew()
    assert len(complaints(caplog)) == 2


def test_content_that_is_no_good_is_not_read_again_before_it_changes(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.failing = ConfigError("section.words: no words")
    watched.write("bad")
    assert [watched.files.renew() for _ in range(3)] == [False, False, False]
    assert watched.reads == 2
    watched.write("worse")
    assert not watched.files.renew()
    assert complaints(caplog) == ["the words stay as they were: section.words: no words"] * 2


def test_a_file_that_goes_and_comes_back_as_it_was_is_read(watched: Watched) -> None:
    away = watched.paths[0].rename(watched.paths[0].with_suffix(".away"))
    assert not watched.files.renew()
    away.rename(watched.paths[0])
    assert watched.files.renew()


def test_at_the_start_files_must_be_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"section\.words: .*missing: cannot be read: No such file"):
        WatchedFiles([missing], lambda: read_file(missing, "section.words"), "the words")
