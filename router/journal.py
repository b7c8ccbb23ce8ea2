"""The records of this router's requests: built while they run, kept in a ring when they have ended, sent to the store.

Nothing here waits but `look_up`, which asks the store for what this router does not have. It must not know how a
decision is made, nor what a record is used for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator

from msgspec import structs

from router.journal_record import Attempt, Decision, RequestRecord, Rung, Timing, decoded, encoded

Send = Callable[[str, bytes], None]
"""Takes a finished record for the store; must neither wait nor raise."""

Recall = Callable[[str], Awaitable[bytes | None]]
"""Asks the store; raises `StoreUnavailable`."""

CANDIDATES = 16
"""To be kept of each decision, so that a record stays small, however large the fleet."""

_DECISIONS = _ATTEMPTS = _RUNGS = 32
_TEXT = 500  # characters of a reason


class Journal:
    """`most`: finished records that are kept here; the oldest leave first."""

    def __init__(self, router_id: str, most: int, send: Send, recall: Recall) -> None:
        self._router_id = router_id
        self._most = most
        self._send = send
        self._recall = recall
        self._live: dict[str, RequestRecord] = {}
        self._ended: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    # Written while a request runs. What comes for a request that does not run is no error: it came too late.

    def begin(self, request_id: str, tenant: str, prompt_tokens: int, at_unix_s: float) -> RequestRecord:
        """The caller fills in the plain fields; lists grow by the calls below."""
        record = RequestRecord(request_id, self._router_id, at_unix_s, tenant, prompt_tokens)
        record.decisions, record.attempts, record.rungs = [], [], []
        self._live[request_id] = record
        return record

    def decided(self, request_id: str, decision: Decision) -> None:
        record = self._live.get(request_id)
        if record is not None and len(record.decisions) < _DECISIONS:
            record.decisions.append(structs.replace(decision, because=decision.because[:_TEXT]))

    def attempted(self, request_id: str, attempt: Attempt) -> None:
        record = self._live.get(request_id)
        if record is not None and len(record.attempts) < _ATTEMPTS:
            record.attempts.append(attempt)

    def stepped(self, request_id: str, rung: Rung) -> None:
        record = self._live.get(request_id)
        if record is not None and len(record.rungs) < _RUNGS:
            record.rungs.append(rung)

    def end(self, request_id: str, outcome: str, actual: Timing, error: str = "") -> None:
        """The record is complete: it goes into the ring and to the store. Unknown ids are no error."""
        record = self._live.pop(request_id, None)
        if record is None:
            return
        record.outcome, record.actual, record.error = outcome, actual, error[:_TEXT]
        body = encoded(record)
        self._ended.pop(request_id, None)
        self._ended[request_id] = body
        while len(self._ended) > self._most:
            self._ended.popitem(last=False)
        self._send(request_id, body)

    # Read

    def find(self, request_id: str) -> RequestRecord | None:
        """What this router has itself, of a running request too: then it is not complete yet."""
        body = self._ended.get(request_id)
        return self._live.get(request_id) or (decoded(body) if body is not None else None)

    def running(self) -> Iterator[RequestRecord]:
        """Not complete yet; newest first. As of now, however slowly they are taken."""
        return reversed(list(self._live.values()))

    def ended(self) -> Iterator[RequestRecord]:
        """Those that are still kept here, newest first. As of now. Raises `BadRecord`."""
        return map(decoded, reversed(list(self._ended.values())))

    async def look_up(self, request_id: str) -> RequestRecord | None:
        """Asks the store if need be; None when nobody knows the request any more.

        Raises `StoreUnavailable`, `BadRecord`.
        """
        found = self.find(request_id)
        if found is not None:
            return found
        body = await self._recall(request_id)
        return None if body is None else decoded(body)
