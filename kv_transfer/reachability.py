"""Over which transports a source can be read now, learnt from what has failed and from probes.

Owns the circuits and the probes, which are tasks of their own: at first contact pulls wait for one together, so a path
that is cut costs one probe once; what failed later is probed again while pulls take another way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import BatonError, LeaseLost, Overloaded, TicketRefused, TransferFailed
from kv_transfer.circuit import Circuits
from kv_transfer.connections import Connection, Connections, Link, Origin
from kv_transfer.ladder import LadderRules, choose_rungs
from kv_transfer.transport import MOST_ANEW, Interrupted

_log = logging.getLogger(__name__)

Probe = asyncio.Task[BatonError | None]
"""Ends with why nothing came: `TransferFailed`, or `Overloaded`, which is no fault. Does not raise."""


class Reachability:
    """For one rank. `now`: monotonic seconds."""

    def __init__(self, rules: LadderRules, now: Callable[[], float]) -> None:
        self._rules = rules
        self._now = now
        self._circuits = Circuits(rules.circuits)
        self._probes: dict[tuple[Origin, str], Probe] = {}

    def __repr__(self) -> str:
        return f"<Reachability probes={len(self._probes)} {self._circuits}>"

    def rungs(self, connections: Connections, source: Connection) -> tuple[str, ...]:
        """The transports to try, in this order. Those that have waited long enough since they failed are probed
        meanwhile."""
        allowed = self._rules.allowed(connections.transports, source.endpoint.offers)
        for name in allowed:
            if self._circuits.take_probe(source.origin, name, self._now()):
                self._probe(connections, source, name).add_done_callback(self._ended(source, name))
        return choose_rungs(allowed, self._circuits, source.origin)

    async def prove(self, connections: Connections, source: Connection, name: str) -> None:
        """Returns at once when bytes have come over this link before, else waits for a probe. Raises `TransferFailed`
        and `Overloaded`."""
        link = source.links.get(name)
        if link is not None and link.proven:
            return
        probe = self._probes.get((source.origin, name)) or self._probe(connections, source, name)
        if error := await asyncio.shield(probe):
            raise type(error)(str(error))  # one of its own for each who waits

    @contextmanager
    def watched(self, source: Connection, name: str) -> Iterator[None]:
        """A `TransferFailed` in here keeps the next pulls from this transport, unless it says that the ticket or the
        load is at fault."""
        try:
            yield
        except (LeaseLost, TicketRefused, Overloaded):
            raise
        except TransferFailed:
            self._circuits.failed(source.origin, name, self._now())
            raise

    def usable(self, source: Connection, name: str) -> bool:
        """Whether it has not failed of late."""
        return self._circuits.usable(source.origin, name)

    async def close(self) -> None:
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    def check_idle(self) -> None:
        assert not self._probes, f"probes are under way: {list(self._probes)}"

    def _probe(self, connections: Connections, source: Connection, name: str) -> Probe:
        key = (source.origin, name)
        probe = self._probes[key] = asyncio.create_task(self._try(connections, source, name))
        probe.add_done_callback(lambda ended: self._probes.pop(key))
        return probe

    async def _try(self, connections: Connections, source: Connection, name: str) -> BatonError | None:
        try:
            async with connections.held(source):
                with connections.link(source, name) as link:
                    await self._bytes_come(link)
        except Overloaded as error:
            return Overloaded(f"{source}: {name}: {error}")
        except TransferFailed as error:
            return TransferFailed(f"{source}: {name}: {error}")
        except Exception as error:  # a bug in a transport costs this transport, not the engine
            _log.exception("%s: the probe over %s broke", source, name)
            return TransferFailed(f"{source}: {name}: {type(error).__name__}: {error}")
        return None

    async def _bytes_come(self, link: Link) -> None:
        for _ in range(1 + MOST_ANEW):
            try:
                async with asyncio.timeout(self._rules.probe_s):
                    await link.transport.probe(link.peer)
            except TimeoutError:
                raise TransferFailed(f"a probe brought no byte within {self._rules.probe_s:g} s") from None
            except Interrupted as error:
                _log.info("%s", error)
                continue
            link.proven = True
            return
        raise Overloaded("each probe was interrupted by the reads of others")

    def _ended(self, source: Connection, name: str) -> Callable[[Probe], None]:
        def tell(probe: Probe) -> None:
            error = TransferFailed("it was cancelled") if probe.cancelled() else probe.result()
            # Whoever is busy is there; and bytes have yet to come before anything is read over a new link.
            answered = error is None or isinstance(error, Overloaded)
            self._circuits.probed(source.origin, name, answered, self._now())
            if not answered:
                _log.warning("still not reachable: %s", error)
            else:
                _log.info("%s: %s works again", source, name)

        return tell
