"""One module opens gRPC ports and channels, so that none is left in plain text by mistake."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_house import PACKAGES, ROOT

ALLOWED = {"cluster/tls.py", "deploy/cli/endpoint.py", "cluster/tracing_otlp.py"}  # the last: to a collector, outside
_OPENS = re.compile(r"\b(insecure_channel|secure_channel|add_insecure_port|add_secure_port)\(")


def _opens(path: Path) -> bool:
    return bool(_OPENS.search(path.read_text()))


def test_ports_and_channels_are_opened_where_encryption_is_decided_and_nowhere_else() -> None:
    found = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py") if _opens(path)}
    assert found == ALLOWED
