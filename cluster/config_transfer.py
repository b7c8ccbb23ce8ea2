"""Section `kv_transfer`: how finished KV blocks move, over which transports, and how long each may take.

Only values and their checks; `kv_transfer/` gives them their meaning.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from cluster.config_section import Count, Seconds, Section

TransportName = Literal["nixl", "grpc"]


class RungConfig(Section):
    """How long one transport may take for a read of so many bytes before the next one is tried: bytes / `mib_per_s` *
    `factor`, but at least `floor_s` and at most `ceiling_s`."""

    mib_per_s: Annotated[float, Field(gt=0)]
    factor: Annotated[float, Field(ge=1)] = 4.0
    floor_s: Seconds = 2.0
    ceiling_s: Seconds = 20.0

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> Self:
        if self.floor_s > self.ceiling_s:
            raise ValueError(f"floor_s {self.floor_s:g} is above ceiling_s {self.ceiling_s:g}")
        return self


class KvTransferConfig(Section):
    """How finished KV blocks move. A lease is held for `lease_s` from its offer and anew from each claim.

    `prefer` is tried first, what `forbid` names never. A transport that failed with a peer is skipped for
    `circuit_open_s`, twice as long after each probe that fails, at most `circuit_most_s`. `net_device` is the network
    interface that NIXL may use; None leaves the choice to UCX. With `vllm-nixl`, vLLM's own connector moves the blocks:
    of these keys it knows `lease_s` and `net_device`. With `chunk_pipelining` decode pulls the blocks of a prompt of at
    least `pipelining_least_tokens` tokens while prefill still computes the rest of it.
    """

    connector: Literal["baton", "vllm-nixl"] = "baton"
    lease_s: Seconds = 30.0
    connect_deadline_s: Seconds = 5.0
    prefer: TransportName = "nixl"
    forbid: list[TransportName] = Field(default_factory=list)
    nixl: RungConfig = RungConfig(mib_per_s=512)
    grpc: RungConfig = RungConfig(mib_per_s=128)
    probe_s: Seconds = 1.0
    circuit_open_s: Seconds = 5.0
    circuit_most_s: Seconds = 60.0
    net_device: str | None = None
    frame_kib: Annotated[int, Field(ge=256, le=4096)] = 1024
    in_flight_mib: Annotated[int, Field(ge=1)] = 64
    chunk_pipelining: bool = False
    pipelining_least_tokens: Count = 2_048

    @property
    def first_token_from_prefill(self) -> bool:
        """Whether decode can go on behind a token that prefill sampled; vLLM's connector moves whole prompts only."""
        return self.connector == "baton"

    @model_validator(mode="after")
    def _some_way_is_left(self) -> Self:
        if set(self.forbid) == set(get_args(TransportName)):
            raise ValueError("forbid names every transport: leave at least one, blocks could never move")
        if self.prefer in self.forbid:
            raise ValueError(f"prefer is {self.prefer}, which forbid names: set prefer to what may be used")
        if self.circuit_most_s < self.circuit_open_s:
            raise ValueError(f"circuit_most_s {self.circuit_most_s:g} is below circuit_open_s {self.circuit_open_s:g}")
        return self

    @model_validator(mode="after")
    def _connector_can(self) -> Self:
        if self.connector == "vllm-nixl":
            wanted = {
                "chunk_pipelining": self.chunk_pipelining,
                "prefer: grpc": self.prefer == "grpc",
                "forbid: [nixl]": "nixl" in self.forbid,
            }
            if refused := ", ".join(key for key, is_set in wanted.items() if is_set):
                raise ValueError(f"connector vllm-nixl cannot do {refused}: leave it out, or use connector: baton")
        return self
