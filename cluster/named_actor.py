"""One detached, named Ray actor of a cluster: made by whoever calls it first, and again when it is lost.

Every call has a deadline. What the actor does, and how its state comes back, is its own business.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.errors import DeadlineExceeded

logger = logging.getLogger(__name__)

CALL_S = 10.0
_AGAIN_S = 0.2
# What Ray raises while an actor dies, its name is given up, or its control store is away.
_AWAY = (RayError, ValueError, RuntimeError, OSError)
_CONCURRENCY = 10_000  # every watcher holds one call open


def namespace(cluster_name: str) -> str:
    """The Ray namespace of a cluster's named actors."""
    return f"baton-{cluster_name}"


class NamedActor:
    """For any process that is connected to the Ray cluster. `kind` is made with `arguments`. Its methods must not raise
    what the caller should hear: an exception from there is taken for the loss of the actor."""

    def __init__(self, name: str, cluster_name: str, kind: type, *arguments: Any) -> None:
        self._name = name
        self._namespace = namespace(cluster_name)
        self._kind = kind
        self._arguments = arguments
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any, deadline_s: float = CALL_S) -> Any:
        """What the method returns. Raises `DeadlineExceeded` when nobody answers in time."""
        last: Exception | None = None
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        actor = await self._connected()
                        return await getattr(actor, method).remote(*arguments)
                    except _AWAY as error:
                        self._actor, last = None, error
                        await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            self._actor = None
            raise DeadlineExceeded(
                f"the {self._name} did not answer within {deadline_s:g} s: {last or method}"
            ) from last

    async def _connected(self) -> Any:
        if self._actor is None:
            self._actor = await asyncio.to_thread(self._get_or_create)  # talks to Ray's control store, and blocks
        return self._actor

    def _get_or_create(self) -> Any:
        options = {
            "name": self._name,
            "namespace": self._namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": _CONCURRENCY,
        }
        return ray.remote(self._kind).options(**options).remote(*self._arguments)
