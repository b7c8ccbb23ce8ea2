"""The net of changes: whoever applies what is taken holds what is held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.block_changes import BlockChanges, BlockDelta


def test_what_comes_and_goes_before_it_is_taken_is_never_told() -> None:
    changes = BlockChanges()
    changes.store(1)
    changes.remove(1)
    assert not changes
    assert changes.take() == BlockDelta()


def test_a_block_that_goes_and_comes_back_is_no_change() -> None:
    changes = BlockChanges()
    changes.store(1)
    changes.take()
    changes.remove(1)
    changes.store(1)
    assert not changes


def test_clearing_outweighs_all_before_it() -> None:
    changes = BlockChanges()
    changes.remove(1)
    changes.store(2)
    changes.clear()
    changes.store(3)
    assert changes.take() == BlockDelta(cleared=True, stored=(3,))


@given(st.lists(st.one_of(st.integers(0, 9), st.just("clear"), st.just("take"))))
def test_the_net_leads_from_what_was_taken_last_to_what_is_held(script: list[int | str]) -> None:
    """A number toggles that block."""
    changes, held, known = BlockChanges(), set[int](), set[int]()
    for step in [*script, "take"]:
        if step == "take":
            delta = changes.take()
            known = ((set() if delta.cleared else known) - set(delta.removed)) | set(delta.stored)
            assert not set(delta.removed) & set(delta.stored)
            assert known == held
        elif step == "clear":
            changes.clear()
            held.clear()
        elif step in held:
            changes.remove(int(step))
            held.remove(int(step))
        else:
            changes.store(int(step))
            held.add(int(step))
