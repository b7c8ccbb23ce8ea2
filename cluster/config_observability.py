"""Section `observability`: logs, metrics, and where traces go.

Only values and their checks; it must not know who writes logs or sends spans.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cluster.config_section import Section, Share


class ObservabilityConfig(Section):
    """`otlp_endpoint` is an OTLP collector's gRPC address, http://HOST:PORT or, with TLS, https://HOST:PORT; without it
    nothing is traced. Of requests whose client does not say, the share `sampling_ratio` is traced. Replicas report
    their metrics to Ray's agent once each `metrics_period_s`, and Ray exports them as often."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics_period_s: Annotated[float, Field(ge=1, le=300)] = 15.0
    otlp_endpoint: str | None = None
    sampling_ratio: Share = 0.01

    @model_validator(mode="after")
    def _endpoint_works(self) -> Self:
        if self.otlp_endpoint is not None and not _is_endpoint(self.otlp_endpoint):
            raise ValueError(
                "otlp_endpoint: valid are http://HOST:PORT and https://HOST:PORT of an OTLP gRPC collector"
            )
        return self


def _is_endpoint(url: str) -> bool:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return False
    bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port is not None and bare
