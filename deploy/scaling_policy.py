"""What Serve's controller asks for the size of a pool: the autoscaler's last word, fetched beside the control loop.

Serve copies this module into its controller, builds the class once a deployment and calls it several times a second: it
must not block. The decision, for both pools at once, is the autoscaler's; this only says how things stand and passes
the answer on. Its threads are the only part of Baton in Serve's controller.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.engine import Role
from cluster.errors import BatonError
from cluster.scaling.autoscaler import ServedPool
from cluster.scaling.frame import ScalingOrders, ScalingSetup
from cluster.scaling.seat import RaySeat, ScalingSeat

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

logger = logging.getLogger(__name__)

_ASK_S = 0.5
_TRUSTED_S = 15.0
"""An answer that is older says nothing any more: the size stays as it is."""
_FORGOTTEN_S = 30.0
"""Serve does not say when it is done with a policy: one that was not asked for so long stops asking itself."""
_REPLACED_S = 2.0
"""The same where the autoscaler knows a newer policy of the pool. Serve asks several times a second, so that one which
is only taken for older, by the clock of another machine, goes on."""


class PoolSizePolicy:
    """`AutoscalingPolicy(policy_function="deploy.scaling_policy:PoolSizePolicy", policy_kwargs=...)`.

    `cluster`: its name; `pool`: "prefill" or "decode"; `setup`: `ScalingSetup.document`.
    """

    def __init__(
        self,
        cluster: str,
        pool: str,
        setup: dict[str, Any],
        seat: Callable[[str], ScalingSeat] = RaySeat,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seat = seat(cluster)
        self._pool = Role(pool)
        self._setup = ScalingSetup.parsed(setup)
        self._now = now
        self._orders = ScalingOrders()
        self._found = (0, 0)  # the size that Serve wants, and how many run
        self._born = self._asked_at = now()
        self._replaced = False
        self._answer: tuple[int, float] | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, object]]:
        """The replicas wanted, and no state for Serve to keep."""
        self._found = context.target_num_replicas, context.current_num_replicas
        self._asked_at = self._now()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fetch, name=f"size of {self._pool.value}", daemon=True)
            self._thread.start()
        return self.size(context.target_num_replicas), {}

    def size(self, current: int) -> int:
        """The last answer, or the current size where there is none that can be trusted."""
        if self._answer is None or self._now() - self._answer[1] > _TRUSTED_S:
            return current
        return self._answer[0]

    @property
    def forgotten(self) -> bool:
        """Whether Serve seems to be done with this policy."""
        return self._now() - self._asked_at >= (_REPLACED_S if self._replaced else _FORGOTTEN_S)

    async def fetch(self) -> None:
        """Says how things stand and keeps the answer. Raises `BatonError` where the autoscaler has none."""
        found = ServedPool(self._pool, *self._found, policy_born=self._born)
        standing = await self._seat.stand(self._setup, found, self._orders)
        self._orders, self._replaced = standing.orders, standing.replaced
        if standing.sizes is not None:
            self._answer = standing.sizes[self._pool], self._now()

    def _fetch(self) -> None:
        asyncio.run(self._keep_fetching())

    async def _keep_fetching(self) -> None:
        away = False
        while not self.forgotten:
            try:
                await self.fetch()
                away = False
            except BatonError as error:
                if not away:
                    logger.warning("the %s pool keeps its size: %s", self._pool.value, error)
                away = True
            await asyncio.sleep(_ASK_S)
