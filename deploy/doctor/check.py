"""One thing that was looked at: whether it is as it should be, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """`WARN`: it works, but less well or not for everything. `FAIL`: something will not work."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """`what_to_do` is empty where all is well."""

    name: str
    verdict: Verdict
    found: str
    what_to_do: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, Verdict.OK, found)


def warn(name: str, found: str, what_to_do: str) -> Check:
    return Check(name, Verdict.WARN, found, what_to_do)


def fail(name: str, found: str, what_to_do: str) -> Check:
    return Check(name, Verdict.FAIL, found, what_to_do)


def worst(checks: Iterable[Check]) -> Verdict:
    found = {check.verdict for check in checks}
    return next((verdict for verdict in (Verdict.FAIL, Verdict.WARN) if verdict in found), Verdict.OK)
