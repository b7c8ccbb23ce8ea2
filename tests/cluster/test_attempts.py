"""The table of open attempts: ownership, queued tokens, outcomes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.attempts import AttemptTable
from cluster.engine import EngineOutput, FinishReason


def output(attempt_id: str, reason: FinishReason | None = None) -> EngineOutput:
    return EngineOutput(attempt_id, [1], finish_reason=reason)


def test_an_output_goes_to_its_owner_until_the_attempt_ends() -> None:
    table: AttemptTable[str] = AttemptTable()
    table.add("a", "me", 10)
    assert table.take(output("a")) == "me"
    assert table.take(output("a", FinishReason.STOP)) == "me"
    assert table.take(output("a")) is None
    assert table.outcomes == {"stop": 1}


def test_prompt_tokens_are_queued_until_the_first_output_or_the_end() -> None:
    table: AttemptTable[str] = AttemptTable()
    table.add("a", "me", 10)
    table.add("b", "me", 5)
    assert table.queued_prefill_tokens == 15
    table.take(output("a"))
    assert table.queued_prefill_tokens == 5
    assert table.end_all(["a", "b", "c"], "abort") == ["a", "b"]
    assert table.queued_prefill_tokens == 0
    assert table.outcomes == {"abort": 2}


def test_owners_are_told_apart_by_identity() -> None:
    table: AttemptTable[list[int]] = AttemptTable()
    mine, yours = [], []  # type: ignore[var-annotated]
    table.add("a", mine, 1)
    table.add("b", yours, 1)
    assert table.owned_by(mine) == ["a"]
    assert table.owner("b") is yours
    assert table.owner("c") is None


@given(
    st.lists(st.tuples(st.sampled_from(["add", "take", "finish", "end"]), st.sampled_from("abcd"), st.integers(0, 9)))
)
def test_every_attempt_ends_once_and_the_counts_agree(calls: list[tuple[str, str, int]]) -> None:
    table: AttemptTable[str] = AttemptTable()
    added = 0
    for call, attempt_id, number in calls:
        match call:
            case "add" if attempt_id not in table:
                table.add(attempt_id, "me", number)
                added += 1
            case "take":
                table.take(output(attempt_id))
            case "finish":
                table.take(output(attempt_id, FinishReason.LENGTH))
            case "end":
                table.end(attempt_id, "abort")
        table.check_integrity()
    assert sum(table.outcomes.values()) + len(table) == added
