"""A dispatch in front of one scripted worker, on a virtual clock: tenants send, the worker answers, times are recorded.

The worker serves each attempt at its own speed; how many run at once is the gate's business alone.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence

from cluster.config import RouterConfig
from cluster.config_admission import AdmissionConfig
from cluster.engine import Role, Sampling
from cluster.wire import role_to_wire
from protos.baton.v1 import worker_pb2
from router.caller import Caller
from router.dispatch import Dispatch
from router.gate import Gate
from router.generation import Emission, GenerationRequest
from tests.router.admission_load import Report, Sender
from tests.router.dispatch_parts import parts

SEATS = 8
SEAT_TOKENS_PER_S = 100.0
CAPACITY = SEATS * SEAT_TOKENS_PER_S


class ScriptedFleet:
    """Requests of one output token; the rest of what a sender sends is prompt."""

    def __init__(self, rules: AdmissionConfig, senders: list[Sender], seed: int = 1) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Sender | None, str]] = []
        self._came: dict[str, tuple[str, float]] = {}  # request id -> tenant, time
        self._report = Report()
        self._draw = random.Random(seed)
        router = RouterConfig(max_in_flight=SEATS)
        gate = Gate(rules, SEATS, lambda: self.now)
        self.dispatch = Dispatch(router, self._post, lambda: self.now, parts(lambda: self.now, seed=seed, gate=gate))
        self.dispatch.connect(self)
        self.dispatch.worker_up(worker_pb2.WorkerDescription(worker_id="p", role=role_to_wire(Role.PREFILL)))
        self._sources = {sender: sender.times(random.Random(self._draw.random())) for sender in senders}
        for sender in senders:
            self._schedule(sender)

    def run(self, until_s: float, count_from_s: float) -> Report:
        counted = self._report
        while self._events and self._events[0][0] <= until_s:
            self.now, _, sender, attempt_id = heapq.heappop(self._events)
            self._report = counted if self.now >= count_from_s else Report()
            if sender is not None:
                self._schedule(sender)
                self._send(sender)
            elif attempt_id:
                self._answer(attempt_id)
            self.dispatch.on_time()
        self.dispatch.check_integrity()
        return counted

    def deliver(self, emissions: Sequence[Emission]) -> None:
        for emission in emissions:
            tenant, came = self._came.pop(emission.request_id)
            if emission.error is not None:
                self._report.refused[tenant] += 1
            else:
                self._report.ttfts[tenant].append(self.now - came)

    def _post(self, worker_id: str, message: worker_pb2.SessionRequest) -> bool:
        if message.HasField("submit"):
            submit = message.submit
            tenant, came = self._came[submit.attempt_id.split("/")[0]]
            tokens = len(submit.prompt_token_ids) + 1
            self._report.served[tenant] += tokens
            self._report.waits[tenant].append(self.now - came)
            self._put(self.now + tokens / SEAT_TOKENS_PER_S, attempt_id=submit.attempt_id)
        return True

    def _send(self, sender: Sender) -> None:
        number = next(self._order)
        request_id = f"{sender.tenant}-{number}"
        self._came[request_id] = (sender.tenant, self.now)
        # The worker computes all of every prompt, so none may look cached.
        prompt = [number] * (self._draw.randint(sender.least, sender.most) - 1)
        caller = Caller(sender.tenant, sender.priority)
        self.dispatch.submit(GenerationRequest(request_id, prompt, Sampling(1), caller=caller))

    def _answer(self, attempt_id: str) -> None:
        output = worker_pb2.Output(attempt_id=attempt_id, token_ids=[1], finish_reason=worker_pb2.FINISH_REASON_LENGTH)
        self.dispatch.on_step("p", worker_pb2.StepOutputs(outputs=[output]))

    def _schedule(self, sender: Sender) -> None:
        at = next(self._sources[sender], None)
        if at is not None and at < sender.until_s:
            self._put(at, sender)

    def _put(self, at: float, sender: Sender | None = None, attempt_id: str = "") -> None:
        heapq.heappush(self._events, (max(at, self.now), next(self._order), sender, attempt_id))
