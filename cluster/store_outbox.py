"""What a router still has to say to the store: bounded, in batches, kept until it has been heard.

A batch that could not be said comes back and the next one is half as large: what did not go through in time would never
go through. It must not know the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from itertools import islice
from typing import TypeVar

from cluster.quota import Claim, Returned
from cluster.store import Changes, Pin, Record

_LARGEST_BATCH = 2_048
_SMALLEST_BATCH = 16
_T = TypeVar("_T")


class Outbox:
    """At most `most` of each kind; beyond that the oldest goes, and `dropped` counts it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._batch = _LARGEST_BATCH
        self._pins: dict[str, Pin] = {}  # the last word on each session
        self._records: deque[Record] = deque()
        self._returned: deque[Returned] = deque()
        self._noted: dict[str, Claim] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._pins) + len(self._records) + len(self._returned) + len(self._noted)

    def pin(self, pin: Pin) -> None:
        self._pins.pop(pin.session_id, None)
        self._pins[pin.session_id] = pin
        self._bound_names(self._pins)

    def record(self, record: Record) -> None:
        self._records.append(record)
        self._bound(self._records)

    def give_back(self, returned: Returned) -> None:
        """Dropped, if it must be: the claim's lease then ends by itself."""
        self._returned.append(returned)
        self._bound(self._returned)

    def note(self, claim: Claim) -> None:
        """Said before the end of the same claim; so one that came and went during an outage is charged, too."""
        self._noted[claim.claim_id] = claim
        self._bound_names(self._noted)

    @property
    def noted(self) -> Container[str]:
        """Claims that the store has not heard of."""
        return self._noted

    def take(self) -> Changes:
        """The next batch; its owner says it, then tells `said` or `put_back`."""
        pins = [self._pins.pop(name) for name in _first(self._pins, self._batch)]
        noted = [self._noted[name] for name in _first(self._noted, self._batch)]
        return Changes(
            pins=tuple(pins),
            records=_pop(self._records, self._batch),
            returned=_pop(self._returned, self._batch),
            noted=tuple(noted),
        )

    def said(self, batch: Changes) -> None:
        for claim in batch.noted:
            self._noted.pop(claim.claim_id, None)
        self._batch = min(_LARGEST_BATCH, 2 * self._batch)

    def put_back(self, batch: Changes) -> None:
        """What has been overtaken meanwhile is not put back."""
        self._batch = max(_SMALLEST_BATCH, self._batch // 2)
        self._records.extendleft(reversed(batch.records))
        self._returned.extendleft(reversed(batch.returned))
        self._pins = {pin.session_id: pin for pin in batch.pins} | self._pins
        self._bound(self._records)
        self._bound(self._returned)
        self._bound_names(self._pins)

    def _bound(self, queue: deque[Record] | deque[Returned]) -> None:
        while len(queue) > self._most:
            queue.popleft()
            self.dropped += 1

    def _bound_names(self, named: dict[str, Pin] | dict[str, Claim]) -> None:
        while len(named) > self._most:
            del named[next(iter(named))]
            self.dropped += 1


def _first(names: Iterable[str], count: int) -> list[str]:
    return list(islice(names, count))


def _pop(queue: deque[_T], count: int) -> tuple[_T, ...]:
    return tuple(queue.popleft() for _ in range(min(count, len(queue))))
