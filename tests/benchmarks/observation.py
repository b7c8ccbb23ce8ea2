"""What metrics and traces cost a router, for each request and each token, in microseconds of one core.

`python -m tests.benchmarks.observation`. No workers and no clients: only what is added to the path of a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.engine import TransferRung
from cluster.tracing import Sampling, Span
from router.journal_record import Attempt, Decision, RequestRecord, Rung, Timing
from router.request_metrics import FirstToken, RequestMetrics
from router.trace_spans import exported

TOKENS, ROUNDS = 200, 5_000
CAME = FirstToken(0.12, 0.01, 0.001, 0.1, 0.09)
RUNG = TransferRung("nixl", "landed", 10, 1 << 20, began_unix_s=1.0, seconds=0.01, handshake_s=0.002)


class Nowhere:
    def send(self, spans: Sequence[Span]) -> None: ...


def record() -> RequestRecord:
    return RequestRecord(
        "r1",
        "router-1",
        1_000.0,
        "acme",
        400,
        actual=Timing(0.12, 0.02),
        decisions=[Decision("prefill", 0.01, "p1", because="the least predicted time")],
        attempts=[
            Attempt("r1/prefill1", "prefill", "p1", 0.01, 0.1, "completed", first_at_s=0.11),
            Attempt("r1/decode2", "decode", "d1", 0.11, 2.0, "completed", first_at_s=0.13),
        ],
        rungs=[Rung("r1/decode2", "nixl", "landed", 10, 1 << 20, at_s=0.112, duration_s=0.01)],
        output_tokens=TOKENS,
        duration_s=2.1,
        outcome="completed",
        trace_id="4b" * 16,
    )


def main() -> None:
    metrics, ended, sampling, nowhere = RequestMetrics("router-1"), record(), Sampling(1.0, time.time), Nowhere()
    trace = sampling.begin()

    def of_a_request() -> None:
        metrics.first_token(CAME)
        metrics.rung(RUNG)
        metrics.ended(ended, 64)

    def of_a_traced_request() -> None:
        context = sampling.begin()
        for attempt in ("r1/prefill1", "r1/decode2"):
            context.headers(attempt)
        nowhere.send(exported(ended, context))

    print(f"metrics, a token              {_us(lambda: metrics.between(0.02, 1)):8.2f} us")
    print(f"metrics, a request beside     {_us(of_a_request):8.2f} us")
    print(f"trace, told to one worker     {_us(lambda: trace.headers('r1/prefill1')):8.2f} us")
    print(f"trace, a request in all       {_us(of_a_traced_request):8.2f} us")


def _us(work: Callable[[], object]) -> float:
    """The best of several runs: what others do on the machine only adds."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(ROUNDS):
            work()
        best = min(best, time.perf_counter() - began)
    return best / ROUNDS * 1e6


if __name__ == "__main__":
    main()
