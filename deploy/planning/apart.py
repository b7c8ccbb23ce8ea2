"""Prefill and decode pools together, with the KV cache that moves between them: what a client sees of both.

Baton's own connector hands over behind the first token, so the transfer stands between the first token and the second;
vLLM's has decode sample every token, so it stands before the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from cluster.cost_model import CostModel
from cluster.model_size import kv_bytes
from deploy.planning.demand import Demand
from deploy.planning.pools import DecodePool, PrefillPool


@dataclass(frozen=True, slots=True)
class HandOver:
    """`seconds`: of the transfer, for each prompt length. `busy`: share of the busier pool's network in use;
    `each_bytes_s`: what one of its GPUs moves in a second. `stock`: vLLM's own connector moves it."""

    seconds: tuple[float, ...]
    busy: float
    each_bytes_s: float
    stock: bool


@dataclass(frozen=True, slots=True)
class Apart:
    demand: Demand
    prefill: PrefillPool
    decode: DecodePool
    hand_over: HandOver

    @property
    def gpus(self) -> int:
        return sum(pool.replicas * pool.engine.tensor_parallel for pool in (self.prefill, self.decode))

    @property
    def price(self) -> float:
        """US dollars an hour."""
        return sum(worker_price(pool.engine) * pool.replicas for pool in (self.prefill, self.decode))

    def ttft_later_than(self, seconds: float) -> float:
        return self.prefill.ttft_later_than(seconds, self.first_token_extra_s())

    def gap_longer_than(self, seconds: float) -> float:
        usual = self.decode.gap_longer_than(seconds)
        share = self.hand_over_share
        if share == 0.0:
            return usual
        after = seconds - self.decode.mean_gap_s
        late = fmean(1.0 if each > after else 0.0 for each in self.hand_over.seconds)
        return share * late + (1.0 - share) * usual

    def first_token_extra_s(self) -> list[float]:
        """For each prompt length, what comes on top of prefill before a client sees a token."""
        if not self.hand_over.stock:
            return [self.demand.edge_s] * len(self.hand_over.seconds)
        return [self.demand.edge_s + self.decode.mean_gap_s + each for each in self.hand_over.seconds]

    @property
    def hand_over_share(self) -> float:
        """Of all gaps between tokens, those that hold a transfer: one in each request."""
        later = self.demand.workload.later_tokens
        return 0.0 if self.hand_over.stock or later <= 0 else min(1.0 / later, 1.0)

    def keeps_goals(self) -> bool:
        goals, late = self.demand.goals, 1.0 - self.demand.goals.share
        return (
            self.prefill.busy <= self.demand.most_busy
            and self.decode.running.wait_chance <= self.demand.most_full
            and self.gap_longer_than(goals.itl_s) <= late
            and self.ttft_later_than(goals.ttft_s) <= late
        )


def hand_over(demand: Demand, prefill: CostModel, decode: CostModel, replicas: tuple[int, int]) -> HandOver | None:
    """Between pools of so many `replicas`; None: more is to be moved than the network can.

    Every GPU of a worker moves its own part. Transfers share the network evenly, so each takes 1 / (1 - busy) of what
    it takes alone (M/G/1 processor sharing; Kelly, 1979, section 3.3).
    """
    share = max(prefill.kv_share, decode.kv_share)
    sizes = [kv_bytes(demand.shape, prompt) * share for prompt in demand.workload.prompts]
    offered = demand.workload.rate * fmean(sizes)
    network = min(demand.network_of(prefill.hardware), demand.network_of(decode.hardware))
    each = offered / min(replicas)
    busy = each / network
    if busy >= 1.0:
        return None
    seconds = tuple(demand.setup_s + size / (network * (1.0 - busy)) for size in sizes)
    return HandOver(seconds, busy, each, stock=needs_stock_connector(demand, prefill, decode))


def needs_stock_connector(demand: Demand, prefill: CostModel, decode: CostModel) -> bool:
    """Baton's connector moves one kind of KV cache between engines that are split alike."""
    windowed = any(group.window is not None for group in demand.shape.layers)
    return windowed or prefill.tensor_parallel != decode.tensor_parallel


def worker_price(engine: CostModel) -> float:
    return engine.hardware.price * engine.tensor_parallel
