"""vLLM's sampling parameters as bytes: both ends of `EngineRequest.engine_params`, side by side.

The router's adapter writes them, the worker's adapter reads them; nobody in between looks inside. Private fields (the
resolved stop tokens, the end-of-sequence token, the chosen grammar backend) travel too: vLLM fills them once, in the
router.
"""

from __future__ import annotations

import msgspec
from vllm.sampling_params import SamplingParams

from cluster.errors import InvalidRequest

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SamplingParams)


def encode_params(params: SamplingParams) -> bytes:
    """Raises `InvalidRequest` for a parameter that cannot leave the process."""
    try:
        return _encoder.encode(params)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"sampling parameters cannot be sent to a worker: {error}") from error


def decode_params(data: bytes) -> SamplingParams:
    """Raises `InvalidRequest` for bytes that `encode_params` of the same vLLM version did not write."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidRequest(f"engine_params are not this engine's sampling parameters: {error}") from error
