"""Which requests may take their first token from prefill, and which may change their worker."""

from __future__ import annotations

import dataclasses

import pytest

from router.sampling_state import NO_HISTORY, SamplingFacts, may_change_worker, prefill_may_sample

HISTORY_FIELDS = [field.name for field in dataclasses.fields(SamplingFacts) if field.name != "seeded"]


def test_a_request_without_sampling_state_starts_on_prefill_and_may_change_its_worker() -> None:
    assert prefill_may_sample(NO_HISTORY)
    assert may_change_worker(NO_HISTORY)


def test_a_seeded_request_gets_all_tokens_from_one_stream_of_draws_but_may_be_continued_elsewhere() -> None:
    facts = SamplingFacts(seeded=True)
    assert not prefill_may_sample(facts)
    assert may_change_worker(facts)


@pytest.mark.parametrize("fact", HISTORY_FIELDS)
def test_state_that_spans_tokens_keeps_a_request_on_the_worker_that_samples_it(fact: str) -> None:
    facts = SamplingFacts(**{fact: True})
    assert not prefill_may_sample(facts)
    assert not may_change_worker(facts)
