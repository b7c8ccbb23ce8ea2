"""`baton plan`: how many GPUs a load needs, and whether prefill and decode should be apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli import plan_options as options
from deploy.cli.outcome import Exit, Stop, command
from deploy.cli.output import Format, print_as, print_json, print_manifests, print_yaml
from deploy.cli.plan_options import CacheKind, Emit, PlanMode

if TYPE_CHECKING:
    from cluster.config import Config
    from deploy.cli.plan_inputs import PlanOptions
    from deploy.planning.planner import Plan


@command
def plan(  # noqa: PLR0913  each is an option of the command line
    model: options.Model,
    hardware: options.HardwareName,
    ttft: options.Ttft,
    itl: options.Itl,
    rate: options.Rate = None,
    prompt_tokens: options.PromptTokens = None,
    prompt_p95: options.PromptP95 = None,
    output_tokens: options.OutputTokens = None,
    output_p95: options.OutputP95 = None,
    trace: options.Trace = None,
    prefix_hits: options.PrefixHits = None,
    percentile: options.Percentile = 95.0,
    prefill_hardware: options.PrefillHardware = None,
    decode_hardware: options.DecodeHardware = None,
    network: options.Network = None,
    weights: options.Weights = None,
    kv_cache: options.KvCache = CacheKind.BF16,
    price: options.Price = None,
    max_gpus: options.MaxGpus = None,
    unequal_split: options.UnequalSplit = False,
    mode: options.Mode = PlanMode.AUTO,
    why: options.Why = False,
    emit: options.Emitted = None,
    image: options.Image = None,
    profile: options.Profile = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
) -> int:
    """Plan a cluster for a model, a load and two goals. Nothing is started or measured: a cost model says what GPUs can
    do. Exits 1 when no cluster keeps the goals, and says which bound fails."""
    from deploy.cli.plan_inputs import PlanOptions, asked_profile, assumptions, read_demand
    from deploy.planning.planner import Mode, make_plan

    asked = PlanOptions(
        model=model, hardware=hardware, ttft=ttft, itl=itl, rate=rate, trace=trace, prefix_hits=prefix_hits,
        prompt_tokens=prompt_tokens, prompt_p95=prompt_p95, output_tokens=output_tokens, output_p95=output_p95,
        percentile=percentile, prefill_hardware=prefill_hardware, decode_hardware=decode_hardware, network=network,
        weights=weights, kv_cache=kv_cache, prices=tuple(price or ()), max_gpus=max_gpus, unequal_split=unequal_split,
        profile=profile,
    )  # fmt: skip
    measured = asked_profile(asked)
    made = make_plan(read_demand(asked, measured), Mode(mode))
    if emit is not None:
        return _emit(_configured(made, asked), emit, image, output)
    return _print(made, why, assumptions(asked, measured, made.demand), output)


def _configured(made: Plan, asked: PlanOptions) -> Config:
    from deploy.planning.plan_config import needed_quantization, plan_config

    if not made.demand.decode.accelerator_type:
        raise Stop(f"--emit: {made.demand.decode.name} is no GPU; write such a configuration by hand", Exit.USAGE)
    return plan_config(made, _model_path(asked.model, made), needed_quantization(asked.model, asked.weights))


def _model_path(model: str, made: Plan) -> str:
    """What engines load: the hub's name of a known model, else the directory."""
    if made.demand.shape.hub is not None:
        return made.demand.shape.hub
    path = Path(model)
    return str(path if path.is_dir() else path.parent)


def _emit(config: Config, emit: Emit, image: str | None, output: Format) -> Exit:
    from deploy.kuberay_render import default_image, kuberay_manifests

    if config.placement.disaggregate == "never":
        note = "one prefill worker is added to the plan: Baton has no cluster without, and it stands by"
        print(f"baton: {note}", file=sys.stderr)
    if emit is Emit.KUBERAY:
        manifests = kuberay_manifests(config, image or default_image(config))
        print_manifests(manifests, as_json=output is Format.JSON)
    else:
        document = config.model_dump(mode="json", exclude_unset=True)
        print_json(document) if output is Format.JSON else print_yaml([document])
    return Exit.OK


def _print(made: Plan, why: bool, assumed: list[str], output: Format) -> Exit:
    from deploy.cli.plan_document import plan_document
    from deploy.cli.plan_tables import plan_tables

    document = plan_document(made, assumed, why)
    return print_as(document.document, plan_tables(document), output)
