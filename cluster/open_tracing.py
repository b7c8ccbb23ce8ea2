"""Opens the way to the collector where one is configured, and nothing where none is: not even the library is loaded."""

from __future__ import annotations

import asyncio

from cluster.config_observability import ObservabilityConfig
from cluster.tracing_outbox import Outbox

_FAREWELL_S = 2.0


def open_outbox(config: ObservabilityConfig, service: str, process: str) -> Outbox | None:
    """None where nothing is traced. `service` and `process` name this part of the cluster in every span."""
    if config.otlp_endpoint is None:
        return None
    from cluster.tracing_otlp import OtlpExport

    export = OtlpExport(config.otlp_endpoint, {"service.name": service, "service.instance.id": process})
    return Outbox(export, config.otlp_endpoint)


async def close_outbox(outbox: Outbox | None) -> None:
    """Sends what waits, if that goes quickly."""
    if outbox is not None:
        await asyncio.to_thread(outbox.close, _FAREWELL_S)
