"""An engine's blocks under our hashes: chains across messages, copies of one prefix, memory."""

from __future__ import annotations

from cluster.block_changes import BlockDelta
from cluster.block_hashes import extend_chain
from cluster.engine_blocks import EngineBlocks

SEED = 77
TOKENS = list(range(100, 112))
OURS = extend_chain(SEED, TOKENS, 4)


def test_blocks_are_told_under_the_chain_of_their_tokens_wherever_the_engine_cuts_it() -> None:
    blocks = EngineBlocks(10)
    blocks.stored(SEED, None, [901], TOKENS[:4])
    blocks.stored(SEED, 901, [902, 903], TOKENS[4:])
    assert blocks.changes.take() == BlockDelta(stored=tuple(OURS))
    blocks.removed([903])
    assert blocks.changes.take() == BlockDelta(removed=(OURS[2],))


def test_a_prefix_that_two_blocks_hold_goes_with_the_last_of_them() -> None:
    blocks = EngineBlocks(10)
    blocks.stored(SEED, None, [901], TOKENS[:4])
    blocks.stored(SEED, None, [901], TOKENS[:4])
    blocks.removed([901])
    assert blocks.changes.take() == BlockDelta(stored=(OURS[0],))
    blocks.removed([901])
    assert blocks.changes.take() == BlockDelta(removed=(OURS[0],))


def test_what_follows_an_unknown_block_is_left_out_and_its_end_too() -> None:
    blocks = EngineBlocks(10)
    blocks.stored(SEED, 900, [901, 902], TOKENS[:8])
    blocks.removed([901, 902])
    assert not blocks.changes
    assert blocks.orphans == 2


def test_another_seed_is_another_chain() -> None:
    blocks = EngineBlocks(10)
    blocks.stored(SEED + 1, None, [901], TOKENS[:4])
    (ours,) = blocks.changes.take().stored
    assert ours != OURS[0]


def test_an_engine_that_claims_more_blocks_than_it_has_is_forgotten() -> None:
    blocks = EngineBlocks(2)
    blocks.stored(SEED, None, [901, 902], TOKENS[:8])
    blocks.changes.take()
    blocks.stored(SEED, None, [903], TOKENS[8:])
    assert blocks.changes.take() == BlockDelta(cleared=True)
    assert len(blocks) == 0
