"""What all parts of a cluster need of Ray together, with every part at its largest. Pure."""

from __future__ import annotations

from cluster.config import Config


def most_cpus(config: Config) -> float:
    """Logical CPUs."""
    parts = (config.router, config.prefill, config.decode)
    return sum(part.most_replicas * part.cpus_per_replica for part in parts)


def most_resources(config: Config) -> dict[str, float]:
    """Of Ray's custom resources, by name."""
    needed: dict[str, float] = {}
    for part in (config.router, config.prefill, config.decode):
        for name, amount in part.resources.items():
            needed[name] = needed.get(name, 0.0) + amount * part.most_replicas
    return needed
