"""The configuration file: one YAML, strict and frozen sections, nothing repaired.

An unknown key or a bad value raises `ConfigError` that names the key and what would be valid. Nothing below reads the
environment, but for secrets, which are named here and read by `secret`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cluster.config_admission import AdmissionConfig
from cluster.config_observability import ObservabilityConfig
from cluster.config_placement import PlacementConfig
from cluster.config_scaling import AutoscalingConfig, PoolBounds
from cluster.config_section import Count, Port, Seconds, Section, Share
from cluster.config_security import SecurityConfig, open_edges
from cluster.config_store import StoreConfig
from cluster.config_transfer import KvTransferConfig
from cluster.engine import Role
from cluster.errors import ConfigError


class ModelConfig(Section):
    """Which model. `path` is a directory or a hub name; `served_name` is what clients call it."""

    path: str
    served_name: str = "demo"
    max_model_len: Count | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class SimulatedTiming(Section):
    """Seconds. A step takes `step_s` plus `prefill_token_s` for each prompt token computed in it."""

    step_s: Annotated[float, Field(ge=0)] = 0.002
    prefill_token_s: Annotated[float, Field(ge=0)] = 0.00002
    transfer_block_s: Annotated[float, Field(ge=0)] = 0.00001
    num_blocks: Count = 16_384
    max_running: Count = 256
    vocabulary: Annotated[int, Field(ge=2)] = 4_096


class EngineConfig(Section):
    """`options` goes to the engine unread (vLLM's engine arguments); keys that Baton sets itself are refused there."""

    kind: Literal["vllm", "simulated"] = "vllm"
    device: Literal["cpu", "gpu"] = "cpu"
    block_size: Literal[16, 32, 64, 128] = 32
    kv_cache_mib: Annotated[int, Field(ge=16)] = 512
    cpu_threads: Count = 1
    start_deadline_s: Seconds = 240.0
    stall_after_s: Seconds = 3.0
    options: dict[str, Any] = Field(default_factory=dict)
    simulated: SimulatedTiming = SimulatedTiming()

    @model_validator(mode="after")
    def _options_do_not_overrule(self) -> Self:
        ours = sorted(self.options.keys() & _OWNED_OPTIONS)
        if ours:
            raise ValueError(f"{', '.join(ours)}: set by Baton from other keys; leave it out of engine.options")
        return self


_OWNED_OPTIONS = {
    "model", "served_model_name", "max_model_len", "dtype", "block_size", "kv_transfer_config", "kv_events_config",
    "distributed_executor_backend", "tensor_parallel_size", "kv_cache_memory_bytes", "enable_prefix_caching",
}  # fmt: skip


Surge = Annotated[int, Field(ge=0, le=100)]
"""Per cent of a part's replicas, rounded up, that a rolling update starts before it stops old ones."""


class PoolConfig(Section):
    """One pool of workers: `replicas` of them, or as many as `autoscale` says. `gpus_per_replica` is also the tensor
    parallelism.

    `engine_options` wins over `engine.options`. A worker that stops finishes what it has for `drain_s`; then it moves.
    """

    replicas: Count = 1
    autoscale: PoolBounds | None = None
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    gpus_per_replica: Annotated[int, Field(ge=0)] = 0
    accelerator_type: str | None = None
    resources: dict[str, float] = Field(default_factory=dict)
    engine_options: dict[str, Any] = Field(default_factory=dict)
    listen_host: str = "127.0.0.1"
    drain_s: Seconds = 60.0
    surge_percent: Surge = 0

    @property
    def most_replicas(self) -> int:
        """The pool at its largest."""
        most = self.replicas if self.autoscale is None else self.autoscale.max_replicas
        return with_surge(most, self.surge_percent)

    @property
    def replica_cost(self) -> float:
        """In units of `autoscaling.budget`."""
        given = None if self.autoscale is None else self.autoscale.cost
        return float(self.gpus_per_replica or 1) if given is None else given

    @model_validator(mode="after")
    def _options_do_not_overrule(self) -> Self:
        ours = sorted(self.engine_options.keys() & _OWNED_OPTIONS)
        if ours:
            raise ValueError(f"{', '.join(ours)}: set by Baton from other keys; leave it out of engine_options")
        return self

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.autoscale is not None and self.replicas != 1:
            raise ValueError(f"replicas is {self.replicas}, but autoscale sizes the pool: leave one of them out")
        return self


class RouterConfig(Section):
    """`http_port` is Serve's HAProxy; `grpc_port` is shared by the routers of one node. A client whose body does not
    come within `client_deadline_s`, or that does not read for so long, loses its request.

    A worker of which nothing was heard for `silent_after_s` is taken out, and its requests move. A request whose last
    worker was lost waits `worker_deadline_s` for one to come back; it may have `attempts_most` attempts that fail or
    are lost, and `lost_workers_most` workers lost under it in a row. Retries after errors are at most `retry_share` of
    the router's recent requests, and `retry_floor_per_s` on top.
    """

    replicas: Count = 1
    surge_percent: Surge = 0
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    resources: dict[str, float] = Field(default_factory=dict)
    http_host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_host: str = "127.0.0.1"
    grpc_port: Port = 9000
    max_body_bytes: Count = 8 * 1024 * 1024
    max_in_flight: Count = 1_024
    max_choices: Count = 16
    request_deadline_s: Seconds = 600.0
    prefill_deadline_s: Seconds = 120.0
    worker_deadline_s: Seconds = 5.0
    client_deadline_s: Seconds = 30.0
    silent_after_s: Annotated[float, Field(ge=0.2)] = 3.0
    attempts_most: Count = 6
    lost_workers_most: Count = 3
    retry_share: Share = 0.2
    retry_floor_per_s: Annotated[float, Field(ge=0)] = 3.0
    prefill_may_decode: bool = True
    chat_template: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.http_port == self.grpc_port != 0:
            raise ValueError(f"grpc_port {self.grpc_port} is also http_port: give each a port of its own")
        return self

    @property
    def most_replicas(self) -> int:
        return with_surge(self.replicas, self.surge_percent)

    @property
    def drain_s(self) -> float:
        """The longest that a stopping router takes to finish: HTTP requests first, then the calls over gRPC that came
        meanwhile."""
        return 2 * self.request_deadline_s


class Config(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$")] = "baton"
    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    prefill: PoolConfig = PoolConfig()
    decode: PoolConfig = PoolConfig()
    router: RouterConfig = RouterConfig()
    placement: PlacementConfig = PlacementConfig()
    kv_transfer: KvTransferConfig = KvTransferConfig()
    admission: AdmissionConfig = AdmissionConfig()
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    store: StoreConfig = StoreConfig()
    security: SecurityConfig = SecurityConfig()
    observability: ObservabilityConfig = ObservabilityConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for role in Role:
            name, gpus = role.value, self.pool(role).gpus_per_replica
            if self.engine.device == "gpu" and self.engine.kind == "vllm" and gpus == 0:
                raise ValueError(
                    f"{name}.gpus_per_replica is 0, but engine.device is gpu: give each replica at least 1"
                )
            if self.engine.device == "cpu" and gpus > 0:
                raise ValueError(f"{name}.gpus_per_replica is {gpus}, but engine.device is cpu: set engine.device: gpu")
        self._check_scaling()
        prefill, decode = self.prefill.gpus_per_replica, self.decode.gpus_per_replica
        if prefill != decode and self.engine.kind == "vllm" and self.kv_transfer.connector == "baton":
            raise ValueError(
                f"decode.gpus_per_replica is {decode}, but prefill.gpus_per_replica is {prefill}: engines of unequal "
                "tensor parallelism cannot exchange blocks; make them equal, or set kv_transfer.connector: vllm-nixl"
            )
        if self.engine.kind == "simulated" and self.kv_transfer.connector != "baton":
            raise ValueError("kv_transfer.connector is vLLM's, but engine.kind is simulated: use connector: baton")
        if self.router.replicas > 1 and not self.store.shared:
            raise ValueError(
                f"router.replicas is {self.router.replicas}, but store.url is {self.store.url}: several routers share "
                "their state in Redis, set store.url: redis://HOST:PORT/0"
            )
        if self.open_edges and not self.security.allow_open:
            raise ValueError("; ".join(self.open_edges) + "; or accept open edges with security.allow_open: true")
        return self

    def pool(self, role: Role) -> PoolConfig:
        return self.prefill if role is Role.PREFILL else self.decode

    @property
    def open_edges(self) -> list[str]:
        """A sentence for each edge that others reach although nothing guards it; valid only where that is accepted."""
        workers = {f"{role.value}.listen_host": self.pool(role).listen_host for role in Role}
        return list(open_edges(self.security, self.router.http_host, self.router.grpc_host, workers))

    def _check_scaling(self) -> None:
        pools = {role: self.pool(role) for role in Role}
        least = {role: p.replicas if p.autoscale is None else p.autoscale.min_replicas for role, p in pools.items()}
        self._check_budget(least)
        waits_s, starts_s = self.admission.queue.most_wait_s, self.engine.start_deadline_s
        for role, count in least.items():
            if count == 0 and waits_s < starts_s:
                raise ValueError(
                    f"{role.value}.autoscale.min_replicas is 0, but requests do not wait until a worker has started: "
                    f"set admission.queue.most_wait_s ({waits_s:g}) to engine.start_deadline_s ({starts_s:g}) or more"
                )

    def _check_budget(self, least: Mapping[Role, int]) -> None:
        """Also where pools may be empty, one worker that serves must fit: of decode, or of what stands in for it."""
        budget = self.autoscaling.budget
        if budget is None:
            return
        serving = tuple(Role) if self.router.prefill_may_decode else (Role.DECODE,)
        smallest = [{**least, role: max(1, least[role])} for role in serving]
        costs = [sum(count * self.pool(role).replica_cost for role, count in sizes.items()) for sizes in smallest]
        if min(costs) > budget:
            sizes = ", ".join(f"{role.value} {count}" for role, count in smallest[costs.index(min(costs))].items())
            raise ValueError(
                f"autoscaling.budget is {budget:g}, but the smallest pools that serve ({sizes}) cost {min(costs):g}"
            )


def with_surge(replicas: int, surge_percent: int) -> int:
    """How many there are at most while a rolling update replaces them."""
    return replicas + (replicas * surge_percent + 99) // 100


def load_config(path: Path) -> Config:
    """Reads and checks a configuration file.

    Raises `ConfigError`: unreadable file, bad YAML, unknown key, bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return parse_config(raw, origin=str(path))


def parse_config(raw: object, origin: str = "config") -> Config:
    """Checks an already decoded mapping. Raises `ConfigError` with one line for each mistake."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: expected a mapping with the keys {', '.join(Config.model_fields)}")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError("\n".join(f"{origin}: {line}" for line in lines)) from error


def secret(variable: str) -> bytes:
    """The secret in an environment variable. Raises `ConfigError` when it is unset or shorter than 16 bytes."""
    value = os.environ.get(variable, "").encode()
    if len(value) < 16:
        raise ConfigError(f"environment variable {variable}: needs a secret of at least 16 bytes")
    return value


def _explain(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    if detail["type"] == "extra_forbidden":
        valid = _keys_at(detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{key}: unknown key; {hint}valid here: {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{key}: required, but missing"
    # A section may hold a secret, and so may what stands in place of a key's hash.
    hidden = isinstance(detail["input"], dict) or detail["loc"][:1] == ("security",)
    got = "" if hidden else f" (got {detail['input']!r})"
    return f"{key}: {detail['msg'].removeprefix('Value error, ')}{got}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location:
        if str(part) not in section.model_fields:
            continue  # a name in a mapping, or a place in a list
        annotation = section.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return sorted(section.model_fields)
