"""What came of it: streams, faults and the routers' journal into one result. Pure but for the questions to the
journal, which come in as a function."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from protos.baton.v1 import admin_pb2
from tests.benchmarks.streams import percentiles
from tests.chaos.faults import BREAKS, Dealt
from tests.chaos.load import End, Stream

Explain = Callable[[str], admin_pb2.Explanation]


@dataclass(frozen=True)
class Resumed:
    """A stream that had begun, whose worker was hurt, and which another worker went on with. `seconds`: from the fault
    to its next token."""

    stream: Stream
    fault: Dealt
    seconds: float


def resumed(streams: Sequence[Stream], faults: Iterable[Dealt], explain: Explain) -> list[Resumed]:
    """The journal says which of the streams that ran at a fault had to move because of it."""
    found = []
    for fault in faults:
        if not fault.worker_id:
            continue
        for stream in streams:
            if not stream.arrivals or not stream.arrivals[0] < fault.at < stream.ended or not stream.journal_id:
                continue
            if _moved_from(explain(stream.journal_id), fault.worker_id):
                found.append(Resumed(stream, fault, _resume_s(stream, fault.at)))
    return found


def _moved_from(told: admin_pb2.Explanation, worker_id: str) -> bool:
    """A decode attempt, or one that ran whole, did not come to its end there."""
    broken = (a for a in told.attempts if a.worker_id == worker_id and a.leg in ("decode", "whole"))
    return any(attempt.outcome != "completed" for attempt in broken)


def _resume_s(stream: Stream, fault_at: float) -> float:
    """To the end of the longest pause that had not ended at the fault: what was already under way may still come."""
    marks = [*stream.arrivals, stream.ended]
    pauses = [(end - start, end) for start, end in itertools.pairwise(marks) if end > fault_at]
    return max(pauses)[1] - fault_at


def result(
    seed: int, streams: Sequence[Stream], faults: Sequence[Dealt], moved: Sequence[Resumed], leaks: Sequence[str]
) -> dict[str, object]:
    ends = Counter(stream.end for stream in streams)
    at_once = [each.seconds for each in moved if each.fault.kind in BREAKS]
    by_silence = [each.seconds for each in moved if each.fault.kind in ("stall", "silence")]
    return {
        "seed": seed,
        "requests": len(streams),
        "lost": ends[End.LOST],
        "wrong_tokens": ends[End.WRONG],
        "hangs": ends[End.HUNG],
        "leaks": len(leaks),
        "resume_ms": _percentiles(at_once),
        "resume_after_silence_ms": _percentiles(by_silence),
        "moved": len(moved),
        "faults": dict(sorted(Counter(fault.kind for fault in faults).items())),
    }


def _percentiles(seconds: Sequence[float]) -> Mapping[str, float | None]:
    return percentiles(seconds) if seconds else {"p50": None, "p99": None}
