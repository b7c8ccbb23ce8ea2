"""The error tree: as its docstring draws it."""

from __future__ import annotations

import re

from cluster import errors
from cluster.errors import BatonError

_BRANCH = re.compile(r"^    ((?:│   |    )*)[├└]── (\w+)", re.MULTILINE)


def drawn() -> dict[str, str]:
    """Each error's parent."""
    parents, path = {}, [BatonError.__name__]
    for bars, name in _BRANCH.findall(errors.__doc__ or ""):
        path = [*path[: 1 + len(bars) // 4], name]
        parents[name] = path[-2]
    return parents


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BatonError)]
    assert drawn() == {kind.__name__: kind.__mro__[1].__name__ for kind in kinds if kind is not BatonError}
