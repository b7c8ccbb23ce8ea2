"""Section `store`: where routers share what they must share, and how long they wait for it.

Only values and their checks; it must not know any client of the store.
"""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cluster.config_section import Count, Seconds, Section

MEMORY = "memory://"
_VALID = "memory://, redis://HOST:PORT/DB or rediss://HOST:PORT/DB"


class StoreConfig(Section):
    """`memory://` serves one router; several need `redis://` or, with TLS, `rediss://`.

    `password_env` names the environment variable with the password; a password in the URL is refused. Routers write and
    read everything once each `period_s`. No call waits longer than `deadline_s`. What a router holds is forgotten
    `lease_s` after its last word. At most `max_pending` writes wait for the store.
    """

    url: str = MEMORY
    password_env: str | None = None
    period_s: Annotated[float, Field(ge=0.01, le=10)] = 0.1
    deadline_s: Seconds = 0.25
    lease_s: Seconds = 5.0
    pin_s: Seconds = 3_600.0
    max_pins: Count = 100_000
    journal_records: Count = 10_000
    max_pending: Count = 10_000

    @property
    def shared(self) -> bool:
        """Whether several routers can use it."""
        return self.url != MEMORY

    @model_validator(mode="after")
    def _url_works(self) -> Self:
        if self.shared:
            _check_redis_url(self.url)
        elif self.password_env is not None:
            raise ValueError("password_env: memory:// needs none; set url to redis:// or leave it out")
        if self.lease_s < 3 * self.period_s:
            raise ValueError(
                f"lease_s {self.lease_s:g} is less than 3 times period_s {self.period_s:g}: leases would lapse"
            )
        return self


def _check_redis_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(f"url: valid are {_VALID}")
    if parts.password is not None:
        raise ValueError("url: holds a password; leave it out and name its environment variable in password_env")
    if parts.query or parts.fragment or not (parts.path.strip("/") == "" or parts.path[1:].isdecimal()):
        raise ValueError(f"url: after the port only a database number; valid are {_VALID}")
    try:
        parts.port  # noqa: B018 -- reading it checks it
    except ValueError as error:
        raise ValueError(f"url: {error}") from error
