"""The requests of one router that are not over, their attempts, and when something must have become of each.

Tables that belong together, and their recount; what follows when a time has come is `dispatch`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import takewhile

from router.caller import Caller
from router.pipeline import RequestPipeline
from router.request_choices import RequestChoices


@dataclass(slots=True)
class LiveRequest:
    """`deadline`: clock time. `started`: past the gate. `answered`: the client has its first token."""

    pipeline: RequestPipeline
    choices: RequestChoices
    deadline: float
    caller: Caller
    started: bool = False
    answered: bool = False

    @property
    def request_id(self) -> str:
        return self.pipeline.request_id

    @property
    def waits(self) -> bool:
        """No worker has its prompt."""
        return not self.started or self.pipeline.waits


class LiveRequests:
    """Attempts are late in the order of their submission. Requests are not: a client may want its answer sooner."""

    def __init__(self) -> None:
        self._requests: dict[str, LiveRequest] = {}  # in order of arrival
        self._attempts: dict[str, LiveRequest] = {}
        self._late_at: dict[str, float] = {}  # by attempt, in order of submission
        self._retry_at: dict[str, float] = {}  # by request

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Those of now, in order of arrival; they may end meanwhile."""
        return iter(list(self._requests.values()))

    def get(self, request_id: str) -> LiveRequest | None:
        return self._requests.get(request_id)

    def of_attempt(self, attempt_id: str) -> LiveRequest | None:
        return self._attempts.get(attempt_id)

    @property
    def started(self) -> int:
        """How many are past the gate."""
        return sum(live.started for live in self._requests.values())

    # Changes

    def begin(self, live: LiveRequest) -> None:
        self._requests[live.request_id] = live

    def end(self, request_id: str) -> None:
        """After its last attempt was settled."""
        del self._requests[request_id]
        self._retry_at.pop(request_id, None)

    def submitted(self, attempt_id: str, live: LiveRequest, late_at: float | None) -> None:
        """`late_at`: None where only the request has a deadline."""
        self._attempts[attempt_id] = live
        if late_at is not None:
            self._late_at[attempt_id] = late_at

    def settled(self, attempt_id: str) -> None:
        """Unknown ids are no error."""
        self._attempts.pop(attempt_id, None)
        self._late_at.pop(attempt_id, None)

    def retry_at(self, request_id: str, time: float) -> None:
        self._retry_at[request_id] = time

    # Time

    @property
    def next_retry_at(self) -> float | None:
        return min(self._retry_at.values(), default=None)

    def late(self, now: float) -> list[tuple[str, LiveRequest]]:
        """Attempts whose time is over, by id."""
        passed = takewhile(lambda item: item[1] <= now, self._late_at.items())
        return [(attempt_id, self._attempts[attempt_id]) for attempt_id, _ in passed]

    def take_retries(self, now: float) -> Iterator[LiveRequest]:
        """Those whose wait is over; each waits no longer once it is taken."""
        for request_id in [request_id for request_id, at in self._retry_at.items() if at <= now]:
            del self._retry_at[request_id]
            yield self._requests[request_id]

    def overdue(self, now: float) -> list[LiveRequest]:
        return [live for live in self._requests.values() if live.deadline <= now]

    def check_integrity(self, reserved: Set[str]) -> None:
        """Recounts; `reserved`: the attempts that are known to be at workers. AssertionError: that differs."""
        assert reserved == set(self._attempts), (reserved, set(self._attempts))
        assert set(self._late_at) <= set(self._attempts)
        assert all(live.request_id in self._requests for live in self._attempts.values())
        assert set(self._retry_at) == {id_ for id_, live in self._requests.items() if live.pipeline.waits}
        assert not any(live.pipeline.waits for live in self._attempts.values())
