"""What of the configuration a worker is made with, and the version of a part of the cluster that follows from it.

Serve replaces the replicas of whatever has another version. A worker knows nothing of routers, tenants, the other pool
or the size of its own, so it goes on when those change: an engine takes minutes to start. Pure.
"""

from __future__ import annotations

import hashlib
import json

from cluster.config import Config, PoolConfig, RouterConfig
from cluster.config_admission import AdmissionConfig
from cluster.config_placement import PlacementConfig
from cluster.config_scaling import AutoscalingConfig
from cluster.config_security import SecurityConfig
from cluster.config_store import StoreConfig
from cluster.engine import Role

_VERSION_BYTES = 8
_SIZE = PoolConfig().model_dump(include={"replicas", "autoscale", "surge_percent"})


def worker_part(config: Config, role: Role) -> Config:
    """With defaults for all that no worker of this pool reads; nothing else may be given to one."""
    security = config.security
    unread = {
        "router": RouterConfig(),
        "placement": PlacementConfig(),
        "admission": AdmissionConfig(),
        "autoscaling": AutoscalingConfig(),
        "store": StoreConfig(),
        "security": SecurityConfig(ticket_secret_env=security.ticket_secret_env, cluster_tls=security.cluster_tls),
        "prefill": PoolConfig(),
        "decode": PoolConfig(),
    }
    return config.model_copy(update=unread | {role.value: config.pool(role).model_copy(update=_SIZE)})


def version_of(part: Config) -> str:
    """The same for equal values, given or defaults, in whatever order."""
    values = json.dumps(part.model_dump(mode="json"), sort_keys=True)
    return hashlib.blake2b(values.encode(), digest_size=_VERSION_BYTES).hexdigest()
