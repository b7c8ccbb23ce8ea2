"""Section `security`: who may use the edges, how connections are encrypted, and what may stay open.

Only values and their checks. Keys stand here by their hashes, certificates by their paths: nothing here is a secret.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config_admission import Name
from cluster.config_section import Section

NO_TENANT = "anonymous"
"""Who names no tenant; no key can be this one's."""


class KeyEntry(Section):
    """One key by its hash: of a user, who then is `tenant`, or of an operator, who may `view` or `operate`.

    `baton key new` makes a key and prints its entry. `id` is the part of the key that may be seen by anyone.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Name | None = None
    role: Literal["view", "operate"] | None = None

    @model_validator(mode="after")
    def _names_one_holder(self) -> Self:
        if (self.tenant is None) == (self.role is None):
            raise ValueError("give either tenant, for a user's key, or role, for an operator's")
        if self.tenant == NO_TENANT:
            raise ValueError(f"tenant: {NO_TENANT} is whoever has no key; give the tenant another name")
        return self


class TlsConfig(Section):
    """The routers' gRPC API: paths of PEM files. With `client_ca` a client must show a certificate signed by it.

    Files that change are read again: whoever connects later sees the new ones.
    """

    cert: str
    key: str
    client_ca: str | None = None


class ClusterTlsConfig(Section):
    """Between routers and workers, and between workers: both sides show a certificate signed by `ca`, which must sign
    for this cluster only, and which names `name` as its DNS name."""

    cert: str
    key: str
    ca: str
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")] = "baton"


class SecurityConfig(Section):
    """`ticket_secret_env` names the environment variable with the secret of the cluster: it signs tickets, and tenants'
    cache salts are made from it. Where it is unset, `baton up` makes one for the life of the cluster.

    With `keys`, or a `keys_file` that holds such a list, every request and call needs a key; the file is read again
    when it changes. `allow_open` accepts edges that others reach without keys or TLS.
    """

    ticket_secret_env: str = "BATON_TICKET_SECRET"
    keys: list[KeyEntry] = Field(default_factory=list)
    keys_file: str | None = None
    tls: TlsConfig | None = None
    cluster_tls: ClusterTlsConfig | None = None
    allow_open: bool = False

    @property
    def guarded(self) -> bool:
        """Whether anyone is asked for a key."""
        return bool(self.keys) or self.keys_file is not None

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        twice = sorted(id_ for id_, times in Counter(entry.id for entry in self.keys).items() if times > 1)
        if twice:
            raise ValueError(f"keys: {', '.join(twice)} stands there twice: each key has an id of its own")
        return self


def open_edges(
    security: SecurityConfig, http_host: str, grpc_host: str, worker_hosts: Mapping[str, str]
) -> Iterator[str]:
    """One sentence for each edge that others can reach although nothing guards it, accepted or not. `worker_hosts`: by
    their keys."""
    if not security.guarded:
        for key, host in (("router.http_host", http_host), ("router.grpc_host", grpc_host)):
            if not is_loopback(host):
                yield f"{key} is {host}, and nobody is asked for a key: set security.keys (`baton key new` makes one)"
    if security.tls is None and not is_loopback(grpc_host):
        yield f"router.grpc_host is {grpc_host}, and keys and prompts would go there unencrypted: set security.tls"
    if security.cluster_tls is None:
        for key, host in worker_hosts.items():
            if not is_loopback(host):
                yield f"{key} is {host}, where anyone could order work and read KV blocks: set security.cluster_tls"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
