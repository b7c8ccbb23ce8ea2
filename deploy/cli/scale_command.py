"""`baton scale`: between which sizes the pools may move, or the one size that a pool is to have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Endpoint, Timeout
from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format

if TYPE_CHECKING:
    from protos.baton.v1 import admin_pb2

_POOLS = ("prefill", "decode")
_SIZES = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")


@command
def scale(
    sizes: Annotated[
        list[str],
        typer.Argument(
            metavar="POOL=SIZE...",
            help="prefill=2..6 bounds a pool, decode=3 pins it, decode=auto takes the configuration's bounds again.",
            show_default=False,
        ),
    ],
    endpoint: Endpoint = "127.0.0.1:9000",
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print what holds then.")] = Format.TABLE,
    timeout: Timeout = 5.0,
) -> int:
    """Bound or pin the sizes of pools until the next order; exits 1 for sizes that there is no room for, 7 when no
    router answers."""
    from deploy.cli.autoscale_command import print_summary
    from deploy.cli.endpoint import ask_admin

    asked = _order(sizes)
    return print_summary(ask_admin(endpoint, timeout, lambda admin: admin.Scale(asked, timeout=timeout)), output)


def _order(sizes: list[str]) -> admin_pb2.ScaleRequest:
    from protos.baton.v1 import admin_pb2

    orders = [_pool_order(each) for each in sizes]
    named = [order.role for order in orders]
    if len(set(named)) < len(named):
        raise Stop("name each pool once", Exit.USAGE)
    return admin_pb2.ScaleRequest(pools=orders)


def _pool_order(text: str) -> admin_pb2.PoolSizeOrder:
    from cluster.nearest import nearest_names
    from protos.baton.v1 import admin_pb2, worker_pb2

    pool, equals, size = text.partition("=")
    if not equals:
        raise Stop(f"{text}: expected POOL=SIZE, such as prefill=2..6 or decode=3", Exit.USAGE)
    if pool not in _POOLS:
        raise Stop(nearest_names("pool", pool, _POOLS), Exit.USAGE)
    role = worker_pb2.ROLE_PREFILL if pool == "prefill" else worker_pb2.ROLE_DECODE
    if size == "auto":
        return admin_pb2.PoolSizeOrder(role=role, configured=True)
    found = _SIZES.fullmatch(size)
    if found is None:
        raise Stop(f"{text}: a size is a number, a range such as 2..6, or auto", Exit.USAGE)
    least, most = int(found[1]), int(found[2] or found[1])
    if least > most:
        raise Stop(f"{text}: {least} is above {most}", Exit.USAGE)
    return admin_pb2.PoolSizeOrder(role=role, least=least, most=most)
