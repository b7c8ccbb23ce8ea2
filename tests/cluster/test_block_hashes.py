"""Names of blocks: equal for equal prefixes, different for all else, and the same whichever way they are computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.block_hashes import BlockChain, chain_seed, extend_chain

SEED = chain_seed("model", "", "")
TOKENS = list(range(100, 164))


def test_names_stay_what_they_are_from_one_release_to_the_next() -> None:
    # Routers and workers of two releases meet while a cluster is upgraded.
    assert chain_seed("model", "adapter", "salt") == 0xAC1169299CAEF81B
    assert extend_chain(1, TOKENS, 32) == [0xF354495A2FD597B1, 0xB0184552CD2640C]


def test_only_full_blocks_have_names() -> None:
    assert len(extend_chain(SEED, TOKENS, 32)) == 2
    assert len(extend_chain(SEED, TOKENS[:-1], 32)) == 1
    assert extend_chain(SEED, TOKENS[:31], 32) == []
    assert extend_chain(SEED, [], 32) == []


def test_a_name_covers_all_that_came_before() -> None:
    changed = [TOKENS[0] + 1, *TOKENS[1:]]
    assert not set(extend_chain(SEED, TOKENS, 16)) & set(extend_chain(SEED, changed, 16))
    late = [*TOKENS[:-1], TOKENS[-1] + 1]
    assert extend_chain(SEED, TOKENS, 16)[:3] == extend_chain(SEED, late, 16)[:3]
    assert extend_chain(SEED, TOKENS, 16)[3] != extend_chain(SEED, late, 16)[3]


def test_model_adapter_and_salt_each_make_another_chain() -> None:
    seeds = {
        chain_seed(*parts)
        for parts in [("m", "", ""), ("n", "", ""), ("m", "a", ""), ("m", "", "a"), ("ma", "", ""), ("", "m", "a")]
    }
    assert len(seeds) == 6
    assert len({extend_chain(seed, TOKENS, 32)[0] for seed in seeds}) == 6


@pytest.mark.parametrize("token", [-1, 2**32])
def test_what_is_no_token_id_is_refused_and_changes_nothing(token: int) -> None:
    chain = BlockChain(SEED, 16)
    chain.extend(TOKENS[:20])
    with pytest.raises(OverflowError):
        chain.extend([1, token])
    assert chain.extend(TOKENS[20:]) == extend_chain(SEED, TOKENS, 16)[1:]


@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    block_size=st.sampled_from([1, 16, 32]),
)
def test_a_chain_that_grows_by_pieces_equals_one_computed_at_once(
    tokens: list[int], cuts: list[int], block_size: int
) -> None:
    whole = extend_chain(SEED, tokens, block_size)
    chain, given_out = BlockChain(SEED, block_size), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 200], strict=True):
        given_out += chain.extend(tokens[start:end])
    assert chain.hashes == given_out == whole


@given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=200), at=st.integers(0, 5))
def test_a_chain_goes_on_from_any_block(tokens: list[int], at: int) -> None:
    whole = extend_chain(SEED, tokens, 16)
    at = min(at, len(whole) - 1)
    assert whole[at + 1 :] == extend_chain(whole[at], tokens[(at + 1) * 16 :], 16)
