"""Options of the gRPC channels and servers inside the cluster: both ends must agree, so they stand together."""

from __future__ import annotations

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_PING_EVERY_MS = 2_000
_PING_ANSWER_MS = 3_000
SILENT_AFTER_S = (_PING_EVERY_MS + _PING_ANSWER_MS) / 1000
"""A peer that is frozen or cut off is given up after so long: its connection then breaks at this end. A caller that may
be told to wait longer for a silent peer says so (`patient_options`)."""

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # A peer whose machine is gone sends no FIN: it is found out after one ping and its timeout.
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", _PING_ANSWER_MS),  # of the ping itself: by default a minute, whatever the line above
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Whoever owns the channel watches the directory and decides when to try again; no long pauses in here.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two links to one address must not share a connection: each sees its own end.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


def patient_options(silent_after_s: float) -> list[tuple[str, int]]:
    """Of a channel whose peer may be silent for so long: its connection does not break before."""
    answer_ms = max(_PING_ANSWER_MS, round(1000 * silent_after_s))
    pings = dict.fromkeys(("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"), answer_ms)
    return [*(dict(CHANNEL_OPTIONS) | pings).items()]


SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Peers may ping as often as CHANNEL_OPTIONS makes them; by default the third ping would close the connection.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_EVERY_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", _PING_ANSWER_MS),  # of the ping itself: by default a minute, whatever the line above
    ("grpc.so_reuseport", 0),
]
