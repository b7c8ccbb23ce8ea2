"""Which requests carry sampling state from one token to the next, and what that forbids.

Decode starts with fresh sampling state. A request without such state may therefore take its first token from prefill
and may change its worker in mid-stream; one with it must have all its tokens sampled in one place. Knows no engine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingFacts:
    """What in a request's sampling looks back at earlier tokens, or counts them.

    `seeded`: draws come from the request's own stream of random numbers. `custom_logits`: code of the deployment or
    extra arguments of the client take part in sampling, and nothing is known about what they keep.
    """

    seeded: bool = False
    penalties: bool = False
    grammar: bool = False
    min_tokens: bool = False
    bad_words: bool = False
    thinking_budget: bool = False
    repetition_detection: bool = False
    custom_logits: bool = False

    @property
    def keeps_history(self) -> bool:
        """Whether the tokens so far, beyond being part of the prompt, decide about the next one."""
        return (
            self.penalties
            or self.grammar
            or self.min_tokens
            or self.bad_words
            or self.thinking_budget
            or self.repetition_detection
            or self.custom_logits
        )


NO_HISTORY = SamplingFacts()


def prefill_may_sample(facts: SamplingFacts) -> bool:
    """Whether the first token of prefill can be kept. If not, decode samples it again from the same logits."""
    return not (facts.seeded or facts.keeps_history)


def may_change_worker(facts: SamplingFacts) -> bool:
    """Whether another worker can continue from prompt plus emitted tokens.

    A seeded request may: its later draws differ, their distribution does not.
    """
    return not facts.keeps_history
