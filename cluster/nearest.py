"""What to say of a name that is not known: the nearest ones that are, and all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from cluster.errors import ConfigError

_LISTED = 20


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error to raise for a `name` of this `kind` ("hardware", "model") that is none of `known`."""
    return ConfigError(nearest_names(kind, name, known))


def nearest_names(kind: str, name: str, known: Iterable[str]) -> str:
    """The same as a sentence."""
    valid = {each.lower(): each for each in known}
    begun = sorted(each for each in valid if name and each.startswith(name.lower()))
    near = [valid[each] for each in begun[:3] or difflib.get_close_matches(name.lower(), valid, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    names = sorted(valid.values())
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{kind} {name!r} is not known; {hint}known: {', '.join(names[:_LISTED]) or 'none'}{more}"
