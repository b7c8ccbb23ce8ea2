"""The writing side of a hand-over that begins before its prompt is finished: pins and publishes blocks step by step.

vLLM counts tokens as computed when it schedules them. Blocks are therefore pinned at once, while they are surely the
request's own, but published only when the workers report that the step has run. Runs on the engine's own thread.

    step N is scheduled ──▶ its whole blocks are pinned ──▶ step N has run ──▶ they join the growing lease
    the request is over ──▶ the lease is closed, once the last of its steps has run
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kv_transfer.connector.exporter import prompt_of
from kv_transfer.growing_exports import GrowingExports


@dataclass(slots=True)
class _Growth:
    """`pinned` blocks of the prompt were taken so far; those in `scheduled`, each with its step, have not run yet."""

    request: Any
    pinned: int = 0
    scheduled: deque[tuple[int, tuple[int, ...]]] = field(default_factory=deque)
    opened: bool = False
    lost: bool = False  # the lease ended while the prompt was still computed
    over: bool = False


class Grower:
    """`pool` is vLLM's block pool; `block_size` in tokens."""

    def __init__(self, exports: GrowingExports, pool: Any, block_size: int) -> None:
        self._exports = exports
        self._pool = pool
        self._block_size = block_size
        self._growths: dict[str, _Growth] = {}

    def begin(self, request: Any) -> None:
        """A prompt came that may be followed."""
        if request.prompt_token_ids is not None:
            self._growths[request.request_id] = _Growth(request)

    def scheduled(
        self, step: int, tokens: Mapping[str, int], blocks_of: Callable[[str], tuple[list[int], ...]]
    ) -> bool:
        """Step `step` computes so many tokens of each request. Whether anyone must hear when it has run. To be called
        before vLLM counts these tokens as computed."""
        for request_id in self._growths.keys() & tokens.keys():
            growth = self._growths[request_id]
            computed = growth.request.num_computed_tokens + tokens[request_id]
            whole = min(computed, growth.request.num_prompt_tokens) // self._block_size
            if whole > growth.pinned and not growth.lost:
                block_ids = tuple(blocks_of(request_id)[0][growth.pinned : whole])
                self._pool.touch([self._pool.blocks[i] for i in block_ids])
                growth.scheduled.append((step, block_ids))
                growth.pinned = whole
        return any(growth.scheduled for growth in self._growths.values())

    def ran(self, step: int) -> None:
        """All steps up to this one have run."""
        for request_id, growth in list(self._growths.items()):
            while growth.scheduled and growth.scheduled[0][0] <= step:
                self._publish(request_id, growth, growth.scheduled.popleft()[1])
            self._close_if_over(request_id, growth)

    def over(self, request_id: str) -> None:
        """The request has finished or was aborted; steps of it may still run."""
        if (growth := self._growths.get(request_id)) is not None:
            growth.over = True
            self._close_if_over(request_id, growth)

    def check_idle(self) -> None:
        """AssertionError: something of a request that has ended is still here."""
        assert not self._growths, f"prompts of no request grow: {sorted(self._growths)}"

    def _publish(self, request_id: str, growth: _Growth, block_ids: tuple[int, ...]) -> None:
        if not growth.opened and not growth.lost:
            growth.opened = self._open(request_id, growth, block_ids)
            growth.lost = not growth.opened
        elif not growth.lost:
            growth.lost = not self._exports.grow(request_id, block_ids)
        if growth.lost:
            self._pool.free_blocks([self._pool.blocks[i] for i in reversed(block_ids)])

    def _open(self, request_id: str, growth: _Growth, block_ids: tuple[int, ...]) -> bool:
        try:
            self._exports.open(request_id, prompt_of(growth.request), block_ids)
        except ValueError:  # an id that was used before; its prompt goes the ordinary way
            return False
        return True

    def _close_if_over(self, request_id: str, growth: _Growth) -> None:
        if growth.over and not growth.scheduled:
            self._exports.close(request_id)
            del self._growths[request_id]
