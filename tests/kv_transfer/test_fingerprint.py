"""Fingerprints: equal engines agree, and a difference is named with both values."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ConfigError, FingerprintMismatch
from kv_transfer.fingerprint import Fingerprint, digest_of_config, digest_of_weights, require_equal

FIELDS = {"block_size": "32", "dtype": "float32", "packing": "cpu:vec"}


def test_the_order_of_fields_does_not_matter() -> None:
    assert Fingerprint.of(FIELDS).digest == Fingerprint.of(dict(reversed(FIELDS.items()))).digest


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_changes_the_digest_and_is_named_with_both_values(field: str) -> None:
    writer = Fingerprint.of(FIELDS)
    reader = Fingerprint.of(FIELDS | {field: "other"})
    assert reader.digest != writer.digest
    with pytest.raises(FingerprintMismatch, match=f"{field}: reader has other, writer has {FIELDS[field]}$"):
        require_equal(dict(reader.fields), writer)


def test_a_field_that_only_one_side_knows_is_a_difference() -> None:
    with pytest.raises(FingerprintMismatch, match=r"scales: reader has \(none\), writer has e4m3"):
        require_equal(dict(Fingerprint.of(FIELDS).fields), Fingerprint.of(FIELDS | {"scales": "e4m3"}))


def test_equal_fingerprints_pass() -> None:
    require_equal(dict(Fingerprint.of(FIELDS).fields), Fingerprint.of(FIELDS))


def test_a_models_place_is_not_part_of_its_configuration() -> None:
    ignored = frozenset({"_name_or_path"})
    here = digest_of_config({"hidden_size": 8, "_name_or_path": "/here"}, ignored)
    assert here == digest_of_config({"_name_or_path": "/there", "hidden_size": 8}, ignored)
    assert here != digest_of_config({"hidden_size": 9, "_name_or_path": "/here"}, ignored)


def test_other_weights_in_the_same_shape_are_noticed(tmp_path: Path) -> None:
    digests = set()
    for name, fill in (("a", b"\1"), ("copy-of-a", b"\1"), ("b", b"\2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"header" + fill * 200_000)
        digests.add(digest_of_weights(tmp_path / name))
    assert len(digests) == 2


def test_a_training_that_left_the_first_and_the_last_tensor_alone_is_noticed(tmp_path: Path) -> None:
    digests = set()
    for name, fill in (("base", b"\1"), ("tuned", b"\2")):
        (tmp_path / name).mkdir()
        content = b"h" * 100_000 + fill * 2_000_000 + b"t" * 100_000
        (tmp_path / name / "model.safetensors").write_bytes(content)
        digests.add(digest_of_weights(tmp_path / name))
    assert len(digests) == 2


def test_weights_in_files_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    digests = set()
    for name, fill in (("a", b"\1"), ("b", b"\2")):
        (tmp_path / name / "tokenizer").mkdir(parents=True)
        (tmp_path / name / "model.gguf").write_bytes(fill * 1000)
        digests.add(digest_of_weights(tmp_path / name))
    assert len(digests) == 2


def test_a_directory_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file by which its weights"):
        digest_of_weights(tmp_path)
