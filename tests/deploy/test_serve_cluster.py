"""What `baton up` tells of a part that did not start."""

from __future__ import annotations

from deploy.serve_cluster import _last_words

_TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
Traceback (most recent call last):
  File "worker_replica.py", line 57, in start
    await self._starting
OSError: [Errno 12] first
  File "vllm_core.py", line 95, in start
    raise EngineFailed(self._obituary(_first_line(error))) from error
cluster.errors.EngineFailed: vLLM engine (/model): ValueError: no room for the KV cache
  2 GiB are needed"""


def test_the_last_error_is_told_without_its_frames() -> None:
    words = _last_words(_TRACEBACK)
    assert words == (
        "cluster.errors.EngineFailed: vLLM engine (/model): ValueError: no room for the KV cache\n  2 GiB are needed"
    )


def test_a_message_without_an_error_is_told_by_its_end() -> None:
    assert _last_words("a\n\nb") == "a\nb"
