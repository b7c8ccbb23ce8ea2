"""The options of `baton plan`, with their help. Imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Emit(StrEnum):
    CONFIG = "config"
    KUBERAY = "kuberay"


class PlanMode(StrEnum):
    AUTO = "auto"
    DISAGGREGATED = "disaggregated"
    WHOLE = "whole"


class WeightsKind(StrEnum):
    BF16 = "bf16"
    FP8 = "fp8"
    INT4 = "int4"


class CacheKind(StrEnum):
    BF16 = "bf16"
    FP8 = "fp8"


def _number(help_text: str, metavar: str = "N") -> object:
    return typer.Option(metavar=metavar, help=help_text)


_MODEL = "A name that `baton plan` knows, or a config.json or its directory."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
HardwareName = Annotated[
    str, typer.Option("--hardware", "-w", metavar="GPU", help="H100, H200, A100, L40S or B200.", show_default=False)
]
Ttft = Annotated[
    float, typer.Option("--ttft", metavar="SECONDS", help="Goal: time to the first token.", show_default=False)
]
Itl = Annotated[float, typer.Option("--itl", metavar="SECONDS", help="Goal: time between tokens.", show_default=False)]
Rate = Annotated[float | None, _number("Requests a second.")]
PromptTokens = Annotated[float | None, _number("Mean length of prompts.")]
PromptP95 = Annotated[float | None, _number("Their 95th percentile. [default: 2.5 times the mean]")]
OutputTokens = Annotated[float | None, _number("Mean length of outputs.")]
OutputP95 = Annotated[float | None, _number("Their 95th percentile. [default: 2.5 times the mean]")]
Trace = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Recorded requests (JSON lines) in place of rate and lengths.")
]
PrefixHits = Annotated[float | None, _number("Part of each prompt that is cached. [default: 0]", "SHARE")]
Percentile = Annotated[float, _number("Of the cases, those that must keep the goals.", "PERCENT")]
PrefillHardware = Annotated[str | None, typer.Option(metavar="GPU", help="For prefill, where it differs.")]
DecodeHardware = Annotated[str | None, typer.Option(metavar="GPU", help="For decode, where it differs.")]
Network = Annotated[float | None, _number("Between machines, for each GPU. [default: the hardware's]", "GB/S")]
Weights = Annotated[WeightsKind | None, typer.Option(help="What they are held in. [default: the model's]")]
KvCache = Annotated[CacheKind, typer.Option(help="What the KV cache is held in.")]
Price = Annotated[
    list[str] | None, typer.Option(metavar="[GPU=]USD", help="Of one GPU for an hour. May be given several times.")
]
MaxGpus = Annotated[int | None, typer.Option(min=1, help="No plan takes more.")]
UnequalSplit = Annotated[
    bool, typer.Option("--unequal-split", help="Let pools differ in tensor parallelism: takes vLLM's own connector.")
]
Mode = Annotated[PlanMode, typer.Option(help="Prefill apart from decode, or both on every worker.")]
Why = Annotated[bool, typer.Option("--why", help="Say why each number is what it is.")]
Emitted = Annotated[Emit | None, typer.Option("--emit", help="Print what runs the plan in place of the plan.")]
Profile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What `baton profile` measured, in place of guesses.")
]
Image = Annotated[str | None, typer.Option(help="With --emit kuberay: the container image.")]
