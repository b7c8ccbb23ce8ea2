"""How a worker leaves: it takes nothing new, finishes what it has, and moves what is still open at the deadline.

Owns the order of these steps and their times. What is open, and how it is moved, is the worker's business
(`DrainHost`); what ends the process is its owner's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from cluster.clock import Clock
from cluster.drain_orders import DrainOrder, DrainOrders

logger = logging.getLogger(__name__)

LINGER_S = 0.3
"""A drain takes at least so long: whoever has not heard of it yet gets an answer, and not a broken stream."""
_LOOK_S = 0.1
_LEASES_S = 5.0  # after the deadline: for reads that are under way


class DrainHost(Protocol):
    def draining(self, reason: str) -> None:
        """Nothing new from now on."""
        ...

    def undrained(self) -> None:
        """New work again."""
        ...

    def open_attempts(self) -> int: ...

    async def open_leases(self) -> int:
        """Counted anew."""
        ...

    async def move_attempts(self, reason: str) -> None:
        """Ends every open attempt so that its router goes on elsewhere, and waits until the routers have been told."""
        ...


class WorkerDrain:
    """`run` is the worker's background task. `drained` is set once a drain is over, which nothing undoes then; `ended`
    also when the worker broke or was closed."""

    def __init__(self, host: DrainHost, clock: Clock) -> None:
        self._host = host
        self._clock = clock
        self._orders = DrainOrders()
        self._changed = asyncio.Event()
        self.drained = asyncio.Event()
        self.ended = asyncio.Event()
        self.clean = False
        """Whether all was finished by the deadline."""

    @property
    def reason(self) -> str:
        order = self._orders.current
        return "" if order is None else order.reason

    @property
    def left_s(self) -> float | None:
        """Seconds to the deadline, at least 0; None: nothing drains."""
        order = self._orders.current
        return None if order is None else max(0.0, order.deadline - self._clock.now())

    def give(self, drain_id: str, deadline_s: float, reason: str) -> None:
        if self._orders.give(DrainOrder(drain_id, self._clock.now() + max(0.0, deadline_s), reason)):
            self._host.draining(reason)
            self._changed.set()

    def undo(self, drain_id: str) -> None:
        if self._orders.undo(drain_id):
            self._host.undrained()
            self._changed.set()

    def stop(self, deadline_s: float, reason: str) -> None:
        """For the owner, who stops the worker whatever an operator wants."""
        self._orders.stop(self._clock.now() + max(0.0, deadline_s), reason)
        self._host.draining(self.reason)
        self._changed.set()

    def give_up(self) -> None:
        """The worker broke, or was closed: there is nothing left to wait for. May be called twice."""
        self._orders.close()
        self.ended.set()

    async def run(self) -> None:
        """Until a drain has ended."""
        while not self.ended.is_set():
            await self._changed.wait()
            self._changed.clear()
            if self._orders.current is not None:
                await self._carry_out(self._clock.now() + LINGER_S)

    async def _carry_out(self, heard_by: float) -> None:
        while (order := self._orders.current) is not None:
            now = self._clock.now()
            if now >= heard_by and not self._host.open_attempts() and not await self._host.open_leases():
                if self._orders.current is order:
                    return self._end(clean=True)
                continue  # undone while the leases were counted: there may be new work
            if now >= order.deadline:
                return await self._cut(order, heard_by)
            await self._clock.sleep(max(0.0, min(_LOOK_S, order.deadline - now)))

    async def _cut(self, order: DrainOrder, heard_by: float) -> None:
        self._orders.close()
        logger.warning("the drain's time is over; %d attempts move", self._host.open_attempts())
        await self._host.move_attempts(order.reason)
        give_up = self._clock.now() + _LEASES_S
        while (now := self._clock.now()) < heard_by or (now < give_up and await self._host.open_leases()):
            await self._clock.sleep(_LOOK_S)
        self._end(clean=False)

    def _end(self, *, clean: bool) -> None:
        self._orders.close()
        self.clean = clean
        self.drained.set()
        self.ended.set()
