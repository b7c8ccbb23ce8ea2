"""The pauses between tries: they grow, they end, and two readers do not keep step."""

from __future__ import annotations

import random

from kv_transfer.pauses import FIRST_S, LONGEST_S, Pauses


def test_pauses_grow_to_a_limit_and_begin_anew() -> None:
    pauses = Pauses(lambda: 0.5)
    taken = [pauses.take() for _ in range(10)]
    assert taken[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert taken[-2:] == [LONGEST_S, LONGEST_S]
    pauses.begin_anew()
    assert pauses.take() == FIRST_S


def test_readers_that_were_refused_together_do_not_come_again_together() -> None:
    draw = random.Random(1).random
    readers = [Pauses(draw) for _ in range(10)]
    assert len({round(pauses.take(), 3) for pauses in readers}) > 5
    for _ in range(8):
        last = [pauses.take() for pauses in readers]
    assert all(LONGEST_S / 2 <= pause_s <= 1.5 * LONGEST_S for pause_s in last)
