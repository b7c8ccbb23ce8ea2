"""Every metric of Baton, declared once: name, kind, unit, labels and what it means.

The documentation, the dashboard and the alerts are checked against this table. Where the numbers come from is
`worker_metrics`' and the router's business.
"""

from __future__ import annotations

from cluster.metrics import OTHER, PREFIX, Kind, Metric

_FAST = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_WAIT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0, 5.0)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_RATIO = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)

ROUTER, WORKER, PROCESS = ("router",), ("pool", "worker"), ("process",)

LABEL_VALUES: dict[str, frozenset[str]] = {
    "outcome": frozenset({
        "completed", "cancelled", "failed", "refused", "landed", "ahead", "skipped", "stale", "stop", "length", "abort",
        "error", "repetition", "moved", "lost", "sent", "dropped",
    }),
    "reason": frozenset({
        "queue_full", "deadline", "tenant_limit", "no_worker", "not_allowed", "store", "retries_spent",
    }),
    "cause": frozenset({"error", "lost", "stalled", "late", "moved"}),
    "way": frozenset({"disaggregated", "whole"}),
    "transport": frozenset({"nixl", "grpc", "local", "none", "simulated"}),
    "state": frozenset({"starting", "ready", "draining", "stalled", "failed", "leaving"}),
    "event": frozenset({"offered", "released", "expired"}),
    "pool": frozenset({"prefill", "decode"}),
}  # fmt: skip
"""Labels whose values are known; the others name a router, a worker or a process, of which there are as many as run."""

METRICS: dict[str, Metric] = {}


def known(label: str, value: str) -> str:
    """The value, if the label has it; else one that stands for all such."""
    return value if value in LABEL_VALUES[label] else OTHER


def _declare(
    name: str, kind: Kind, unit: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
) -> Metric:
    metric = Metric(PREFIX + name, kind, unit, text, labels, buckets)
    assert metric.name not in METRICS, f"{name} is declared twice"
    METRICS[metric.name] = metric
    return metric


def _counter(name: str, unit: str, text: str, *labels: str) -> Metric:
    return _declare(f"{name}_total", Kind.COUNTER, unit, text, labels, ())


def _gauge(name: str, unit: str, text: str, *labels: str) -> Metric:
    return _declare(name, Kind.GAUGE, unit, text, labels, ())


def _histogram(name: str, unit: str, text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return _declare(name, Kind.HISTOGRAM, unit, text, labels, buckets)


# Requests, as one router sees them

REQUESTS = _counter(
    "requests", "requests", "Requests by how they ended; refused: before a worker heard of them.", *ROUTER, "outcome"
)
PLACED = _counter(
    "requests_placed",
    "requests",
    "Requests whose prompt was handed over (disaggregated), or which completed on one worker (whole).",
    *ROUTER,
    "way",
)
REFUSALS = _counter("refusals", "requests", "Requests refused at the door, by why.", *ROUTER, "reason")
IN_FLIGHT = _gauge("requests_in_flight", "requests", "Requests of this router now, waiting ones included.", *ROUTER)
QUEUED_REQUESTS = _gauge("admission_queued_requests", "requests", "Requests that wait to be admitted.", *ROUTER)
QUEUED_TOKENS = _gauge(
    "admission_queued_tokens", "tokens", "Tokens that the waiting requests are expected to have computed.", *ROUTER
)
PROMPT_TOKENS = _counter("prompt_tokens", "tokens", "Prompt tokens of ended requests that were admitted.", *ROUTER)
OUTPUT_TOKENS = _counter("output_tokens", "tokens", "Tokens sent to clients by ended requests.", *ROUTER)

# The stages of the first token, and what follows

TTFT = _histogram(
    "ttft_seconds", "seconds", "From a request's arrival at the router to its first token.", _FIRST_TOKEN, *ROUTER
)
QUEUE = _histogram("queue_seconds", "seconds", "Stage of the first token: in admission's queue.", _WAIT, *ROUTER)
PLACEMENT = _histogram(
    "placement_seconds",
    "seconds",
    "Stage of the first token: from admission until the first attempt was sent to a worker.",
    _FAST,
    *ROUTER,
)
PREFILL = _histogram(
    "prefill_seconds",
    "seconds",
    "Stage of the first token: from the sending of the attempt that gave it until it came, the worker's own queue"
    " included.",
    _FIRST_TOKEN,
    *ROUTER,
)
FIRST_BYTE = _histogram(
    "first_byte_seconds",
    "seconds",
    "Stage of the first token: from its coming to the router until the first part of a streamed answer was on its way.",
    _FAST,
    *ROUTER,
)
ITL = _histogram(
    "itl_seconds",
    "seconds",
    "Between two tokens of one request, as they come to the router; tokens that come together share the time.",
    _TOKEN,
    *ROUTER,
)
DURATION = _histogram(
    "request_seconds", "seconds", "From a request's arrival to its end, of completed requests.", _WHOLE, *ROUTER
)
PREDICTED_TTFT = _histogram(
    "ttft_predicted_seconds",
    "seconds",
    "First token as placement predicted it, without the wait for admission.",
    _FIRST_TOKEN,
    *ROUTER,
)
PREDICTION_RATIO = _histogram(
    "ttft_prediction_ratio",
    "ratio",
    "First token without the wait for admission, as it was by as it was predicted; 1 is right.",
    _RATIO,
    *ROUTER,
)

# Prefix reuse: three counters, so that a wrong index shows

PREFIX_PREDICTED = _counter(
    "prefix_predicted_tokens",
    "tokens",
    "Prompt tokens that some worker was believed to have cached, at most, when the first worker was chosen.",
    *ROUTER,
)
PREFIX_SELECTED = _counter(
    "prefix_selected_tokens", "tokens", "Of those, tokens that the chosen worker was believed to have.", *ROUTER
)
PREFIX_REUSED = _counter(
    "prefix_reused_tokens", "tokens", "Prompt tokens that the engine found in its prefix cache.", *ROUTER
)

# The stages of the hand-off

HANDSHAKE = _histogram(
    "handshake_seconds",
    "seconds",
    "Stage of the hand-off: before the first byte was asked for, to connect, to claim the lease and to prove the "
    "transport.",
    _FAST,
    *ROUTER,
    "transport",
)
TRANSFER = _histogram(
    "transfer_seconds",
    "seconds",
    "Stage of the hand-off: one rung of the ladder from its first byte to its end.",
    _WAIT,
    *ROUTER,
    "transport",
    "outcome",
)
RECOMPUTE = _histogram(
    "recompute_seconds",
    "seconds",
    "Stage of the hand-off: decode computed the prompt again, from the end of the last rung to the first token.",
    _FIRST_TOKEN,
    *ROUTER,
)

# Recovery

RECOVERIES = _counter("recoveries", "attempts", "Attempts that requests had to leave, by why.", *ROUTER, "cause")
RECOVERED = _counter(
    "recovered_requests", "requests", "Requests that had to leave an attempt, by how they ended.", *ROUTER, "outcome"
)
RETRIES_REFUSED = _counter(
    "retries_refused", "requests", "Requests that failed because the router's budget of retries was used up.", *ROUTER
)
SLOW_WORKERS = _counter(
    "slow_workers", "times", "Times that a worker was left alone for being much slower than its pool.", *ROUTER
)
DRAINS = _gauge("drains", "workers", "Workers that an operator has drained, or whose drain has not ended.", *ROUTER)
LINKED = _gauge(
    "router_workers",
    "workers",
    "Workers that this router has a session with; leaving: they get nothing new.",
    *ROUTER,
    "pool",
    "state",
)

# Sizes

POOL_SIZE = _gauge(
    "pool_size",
    "workers",
    "Workers that are wanted in a pool, by its configuration or the autoscaler.",
    *ROUTER,
    "pool",
)

# What routers share, and traces

STORE_DEGRADED = _gauge("store_degraded", "1 or 0", "1 while the shared store does not answer.", *ROUTER)
STORE_DROPPED = _counter(
    "store_dropped_writes", "writes", "Writes that found no room while the store was away.", *ROUTER
)
ROUTERS = _gauge("store_routers", "routers", "Routers alive at the store's last answer, this one included.", *ROUTER)
TRACE_SPANS = _counter(
    "trace_spans",
    "spans",
    "Spans by what became of them: sent, failed (the collector did not take them) or dropped (no room). Nothing "
    "where traces are off.",
    *PROCESS,
    "outcome",
)

# Workers, as they say of themselves

WORKER_UP = _gauge(
    "worker_up", "1 or 0", "1 if the worker tells of itself; 0: it is listed, but does not answer.", *WORKER
)
WORKER_STATE = _gauge(
    "worker_state", "1 or 0", "1 in the series of the worker's state, 0 in those of all others.", *WORKER, "state"
)
WORKER_RUNNING = _gauge("worker_running", "sequences", "Sequences in the engine's batch.", *WORKER)
WORKER_WAITING = _gauge("worker_waiting", "sequences", "Sequences before the engine's batch.", *WORKER)
WORKER_QUEUED_TOKENS = _gauge(
    "worker_queued_prompt_tokens", "tokens", "Prompt tokens submitted and not yet computed.", *WORKER
)
KV_USAGE = _gauge("worker_kv_usage_ratio", "ratio", "Share of KV blocks in use, 0 to 1.", *WORKER)
KV_BLOCKS = _gauge("worker_kv_blocks", "blocks", "KV blocks of the engine.", *WORKER)
PINNED = _gauge("worker_pinned_blocks", "blocks", "KV blocks that leases hold for readers.", *WORKER)
LEASES = _gauge("worker_leases", "leases", "Leases that wait for a reader, or are being read.", *WORKER)
ATTEMPTS = _counter("worker_attempts", "attempts", "Attempts that ended on the worker, by how.", *WORKER, "outcome")
KV_TRANSFERS = _counter(
    "kv_transfers",
    "transfers",
    "Rungs that the worker tried to pull blocks by; ahead counts pulls that landed once more.",
    *WORKER,
    "transport",
    "outcome",
)
KV_BLOCKS_PULLED = _counter(
    "kv_transfer_blocks", "blocks", "Blocks that the worker pulled.", *WORKER, "transport", "outcome"
)
KV_BYTES_PULLED = _counter(
    "kv_transfer_bytes", "bytes", "Bytes that the worker pulled, of all ranks.", *WORKER, "transport", "outcome"
)
KV_SECONDS = _counter(
    "kv_transfer_seconds", "seconds", "Time that rungs took, handshake included.", *WORKER, "transport", "outcome"
)
RECOMPUTED = _counter(
    "worker_recomputed_requests", "requests", "Requests that had a ticket and computed the prompt again.", *WORKER
)
BLOCKS_SENT = _counter("worker_blocks_sent", "blocks", "Blocks that readers took out of the worker.", *WORKER)
BYTES_SENT = _counter("worker_bytes_sent", "bytes", "Bytes that readers took out of the worker.", *WORKER)
LEASE_EVENTS = _counter(
    "worker_lease_events",
    "leases",
    "Leases offered, ended in order (released) and given up (expired).",
    *WORKER,
    "event",
)
