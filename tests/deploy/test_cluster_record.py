"""The record of a running cluster names one living process, or it is no record."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import BatonError, ConfigError
from deploy.cluster_record import ClusterRecord, all_records, read_record, recorded, state_folder
from deploy.up import NOT_FOUND, run_down


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def _mine(name: str) -> ClusterRecord:
    return ClusterRecord.of_this_process(name, "http://127.0.0.1:1", "127.0.0.1:2")


def test_a_record_stands_while_the_cluster_runs() -> None:
    with recorded(_mine("one")):
        assert all_records() == [_mine("one")]
    assert all_records() == []


def test_a_record_of_a_dead_owner_is_removed() -> None:
    mine = _mine("one")
    recycled = ClusterRecord(mine.name, mine.pid, mine.started - 1, mine.http, mine.grpc)
    path = state_folder() / "one.json"
    with recorded(recycled):
        assert read_record("one") is None
        assert not path.exists()


def test_a_file_that_is_no_record_is_named() -> None:
    (state_folder() / "bad.json").write_text('{"pid": 1}')
    with pytest.raises(BatonError, match=r"bad\.json"):
        read_record("bad")


def test_down_without_a_cluster_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_down(None) == NOT_FOUND
    assert "no cluster runs" in capsys.readouterr().err


def test_down_of_an_unknown_name_says_which_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    with recorded(_mine("one")):
        assert run_down("on") == NOT_FOUND
    assert "cluster 'on' is not known; did you mean one?" in capsys.readouterr().err


def test_a_state_folder_that_cannot_be_made_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    with pytest.raises(BatonError, match=r"/dev/null/state/baton: cannot be made: Not a directory; XDG_STATE_HOME"):
        run_down(None)


def test_down_among_several_wants_a_name() -> None:
    with recorded(_mine("one")), recorded(_mine("two")), pytest.raises(ConfigError, match="one, two"):
        run_down(None)
