"""Section `admission`: how much may wait and run, which classes of requests there are, and what each tenant may have.

Only values and their checks; `router/admission.py` gives them their meaning.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from cluster.config_section import Count, Seconds, Section, Share

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]{0,63}$")]
_Rate = Annotated[float, Field(gt=0)]


class TenantConfig(Section):
    """One tenant. A limit that is absent does not exist.

    `weight` is the tenant's part of the cluster when others want it too. Rates may be passed for a moment: up to
    `burst_s` seconds' worth that was not used before. `max_concurrent` counts requests that wait and that run.
    `classes` are the priority classes it may ask for; empty: all. Tenants of one `prefix_group` share what is cached of
    their prompts; without one a tenant shares with nobody.
    """

    weight: Annotated[float, Field(ge=0.01, le=1000)] = 1.0
    requests_per_s: _Rate | None = None
    tokens_per_s: _Rate | None = None
    burst_s: Seconds = 10.0
    max_concurrent: Count | None = None
    max_prompt_tokens: Count | None = None
    classes: list[Name] = Field(default_factory=list)
    prefix_group: Name | None = None


class QueueConfig(Section):
    """What may wait. Past either bound, the heaviest tenant's newest request makes room for a lighter tenant's.

    `most_wait_s`: a request that has waited so long is refused. `aging_s`: a request that better classes have kept
    waiting so long moves up by one. `class_reserve`: this part of the bounds stays with each class, whatever better
    classes want.
    """

    max_requests: Count = 4_096
    max_tokens: Count = 16_000_000
    most_wait_s: Seconds = 60.0
    aging_s: Seconds = 10.0
    class_reserve: Share = 0.1


class ReorderConfig(Section):
    """A tenant's own requests may swap places for the sake of cached prefixes.

    The one with the most cached tokens among the first `window` goes first; none is overtaken more often than
    `most_overtakes`.
    """

    window: Annotated[int, Field(ge=1, le=64)] = 8
    most_overtakes: Annotated[int, Field(ge=0, le=64)] = 4


class AdmissionConfig(Section):
    """`classes` are the priority classes, best first. `running_tokens`: tokens of all requests that run at once; None
    leaves the bound to the number of requests. Workers get prompts for about `worker_queue_s` seconds of computing
    ahead; the others wait in the router, where they can still change places, and be refused.

    Tenants take turns; in each turn a tenant may use `quantum_tokens` times its weight. `cold_tokens_per_s` is the rate
    assumed before any has been measured. Tenants not named get `default_tenant`, each for itself.
    """

    queue: QueueConfig = QueueConfig()
    reorder: ReorderConfig = ReorderConfig()
    running_tokens: Count | None = None
    worker_queue_s: Seconds = 5.0
    quantum_tokens: Count = 256
    cold_tokens_per_s: _Rate = 10_000.0
    classes: Annotated[list[Name], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: ["interactive", "standard", "batch"]
    )
    default_class: str = "standard"
    tenants: dict[Name, TenantConfig] = Field(default_factory=dict)
    default_tenant: TenantConfig = TenantConfig()

    def tenant(self, name: str) -> TenantConfig:
        return self.tenants.get(name, self.default_tenant)

    @model_validator(mode="after")
    def _classes_exist(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: each name once, got {', '.join(self.classes)}")
        valid = f"valid: {', '.join(self.classes)}"
        if self.default_class not in self.classes:
            raise ValueError(f"default_class: {self.default_class} is no class; {valid}")
        for name, tenant in [*self.tenants.items(), ("default_tenant", self.default_tenant)]:
            unknown = sorted(set(tenant.classes) - set(self.classes))
            if unknown:
                raise ValueError(f"{name}: {', '.join(unknown)} is no class; {valid}")
        if self.queue.class_reserve * len(self.classes) > 1:
            raise ValueError(
                f"queue.class_reserve: {self.queue.class_reserve:g} for each of {len(self.classes)} classes is more "
                "than the whole queue"
            )
        return self
