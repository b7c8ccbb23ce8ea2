"""What came of it: streams, faults and the routers' journal into one result. Pure but for the questions to the
journal, which come in as a function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from protos.baton.v1 import admin_pb2
from tests.benchmarks.streams import percentiles
from tests.chaos.faults import BREAKS, Dealt
from tests.chaos.load import End, Stream

_LEGS = ("prefill", "decode", "whole")

Explain = Callable[[str], admin_pb2.Explanation]


@dataclass(frozen=True)
class Resumed:
    """A stream that had begun, whose worker was hurt, and which another attempt went on with. `seconds`: from the fault
    to that attempt's first token, as the client got it."""

    stream: Stream
    fault: Dealt
    seconds: float


def resumed(streams: Sequence[Stream], faults: Iterable[Dealt], explain: Explain, wall_ahead_s: float) -> list[Resumed]:
    """The journal says which of the streams that ran at a fault had to move because of it. `wall_ahead_s`: seconds
    since 1970 less those of the monotonic clock, at any one moment."""
    found = []
    for fault in faults:
        if not fault.worker_id:
            continue
        for stream in streams:
            if not stream.arrivals or not stream.arrivals[0] < fault.at < stream.ended or not stream.journal_id:
                continue
            told = explain(stream.journal_id)
            arrived = told.arrived_unix_s - wall_ahead_s
            broken = _broken_by(told, fault, arrived)
            if broken is not None:
                found.append(Resumed(stream, fault, _next_token_s(stream, fault, told, broken, arrived)))
    return found


def _broken_by(told: admin_pb2.Explanation, fault: Dealt, arrived: float) -> admin_pb2.AttemptReport | None:
    """The decode attempt, or the one that ran whole, that did not come to its end there and had not yet ended.
    `arrived`: when the request did, by the clock of the fault."""
    for attempt in told.attempts:
        there = attempt.worker_id == fault.worker_id and attempt.leg in ("decode", "whole")
        if there and attempt.outcome != "completed" and arrived + attempt.at_s + attempt.duration_s > fault.at:
            return attempt
    return None


def _next_token_s(
    stream: Stream,
    fault: Dealt,
    told: admin_pb2.Explanation,
    broken: admin_pb2.AttemptReport,
    arrived: float,
) -> float:
    """To the first arrival that the attempts after the broken one made; what was under way from it may come before.
    To the end of the stream, where they made none."""
    later = [attempt for attempt in told.attempts if attempt.leg in _LEGS and attempt.at_s > broken.at_s]
    began_s = [attempt.first_at_s for attempt in later if attempt.HasField("first_at_s")]
    if not began_s:
        return stream.ended - fault.at
    went_on = arrived + min(began_s)
    return next((at for at in stream.arrivals if at >= went_on), stream.ended) - fault.at


def slowest(moved: Sequence[Resumed], began: float, explain: Explain, most: int = 4) -> list[str]:
    """Of those whose fault both ends notice, the latest to go on, and what the journal says of each. `began`: seconds
    of the monotonic clock."""
    at_once = sorted((each for each in moved if each.fault.kind in BREAKS), key=lambda each: -each.seconds)
    return [_told(each, began, explain(each.stream.journal_id)) for each in at_once[:most]]


def _told(late: Resumed, began: float, told: admin_pb2.Explanation) -> str:
    fault, stream = late.fault, late.stream
    attempts = "; ".join(
        f"{a.leg} on {a.worker_id} for {a.duration_s:.3f} s: {a.outcome} {a.reason}" for a in told.attempts
    )
    gaps = [f"{arrival - fault.at:.3f}" for arrival in stream.arrivals if abs(arrival - fault.at) < 2 * late.seconds]
    return (
        f"{late.seconds:.3f} s after {fault.kind} of {fault.worker_id} at {fault.at - began:.1f}: {stream.request_id} "
        f"({attempts}) tokens at {' '.join(gaps)}"
    )


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
