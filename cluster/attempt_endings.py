"""The last outputs of attempts that their worker ends, and not its engine."""

from __future__ import annotations

from cluster.engine import EngineOutput, FinishReason


def refusal(attempt_id: str, error: BaseException, why: FinishReason = FinishReason.ERROR) -> EngineOutput:
    """It was not taken, or failed, for this reason."""
    return EngineOutput(attempt_id, [], finish_reason=why, error=str(error) or repr(error))


def moving_on(attempt_id: str, reason: str) -> EngineOutput:
    """Its router is to go on elsewhere: the worker drains."""
    why = f"the worker drains: {reason}".removesuffix(": ")
    return EngineOutput(attempt_id, [], finish_reason=FinishReason.MOVED, error=why)
