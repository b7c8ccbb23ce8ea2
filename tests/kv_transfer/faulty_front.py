"""A front before an engine's KvSource and KvBlocks: passes every call on, and does to some what a plan for their lease
says.

Readers dial the front; it knows nothing of leases but their ids. So a fault is on the wire, and both ends are the
product's own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import grpc

from protos.baton.v1 import kv_pb2 as pb

_THREADS = 96
_STALL_S = 30.0
_MOST_BYTES = 16 << 20
_GIVEN: set[int] = set()  # ports of all fronts so far: by a port given twice, a reader would take two for one

# refuse: UNAVAILABLE, nobody hears of it. stall: neither passed on nor answered. lose: passed on, but not answered.
CallFault = Literal["pass", "refuse", "stall", "lose"]
# refuse and stall as above. Of the frame at `at`: corrupt: a byte differs. truncate: the stream ends well before it.
# cut: the stream breaks before it. hang: nothing comes from it on. skip: it is left out. repeat: it comes twice.
StreamFault = Literal["pass", "refuse", "stall", "corrupt", "truncate", "cut", "hang", "skip", "repeat"]


@dataclass(frozen=True)
class StreamPlan:
    fault: StreamFault = "pass"
    at: int = 0


@dataclass(frozen=True)
class Plan:
    """What happens to the first, second … call of each kind; all is well with those behind the end."""

    claim: tuple[CallFault, ...] = ()
    complete: tuple[CallFault, ...] = ()
    release: tuple[CallFault, ...] = ()
    read: tuple[StreamPlan, ...] = ()


class FaultyFront:
    """`address` stays the same when what is behind it changes."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="faulty-front")
        options = [("grpc.max_receive_message_length", _MOST_BYTES), ("grpc.max_send_message_length", _MOST_BYTES)]
        self._options = [*options, ("grpc.use_local_subchannel_pool", 1)]
        # Readers ping often; by default the third ping would close their connection.
        pings = [("grpc.http2.min_recv_ping_interval_without_data_ms", 500), ("grpc.http2.max_ping_strikes", 0)]
        self._server = grpc.server(self._pool, options=[*options, *pings])
        self._server.add_generic_rpc_handlers((_Every(self),))
        while (port := self._server.add_insecure_port(f"{host}:0")) in _GIVEN:
            pass
        _GIVEN.add(port)
        self.address = f"{host}:{port}"
        self._aim = ""
        self._source: grpc.Channel | None = None
        self._blocks: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._plans: dict[str, Plan] = {}
        self._seen: Counter[tuple[str, str]] = Counter()
        self._connects: list[CallFault] = []
        self._deaf = threading.Event()  # set: stalled calls end
        self.spoil_nixl = False
        self.done: Counter[str] = Counter()
        self._server.start()

    def aim(self, source: str) -> None:
        """From now on calls go to this KvSource, and to the KvBlocks that it names."""
        with self._lock:
            if source == self._aim:
                return
            self._aim = source
            old = [channel for channel in (self._source, self._blocks) if channel is not None]
            self._source, self._blocks = grpc.insecure_channel(source, options=self._options), None
        for channel in old:
            channel.close()

    def plan(self, lease_id: str, plan: Plan) -> None:
        with self._lock:
            self._plans[lease_id] = plan

    def spoil_connect(self, *faults: CallFault) -> None:
        """What happens to the next calls of Connect."""
        with self._lock:
            self._connects += faults

    def close(self) -> None:
        self._deaf.set()
        self._server.stop(0).wait(5)
        self._pool.shutdown(wait=True)
        for channel in (self._source, self._blocks):
            if channel is not None:
                channel.close()

    def unary(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        fault = self._call_fault(method, request)
        self._count(method, fault)
        if fault == "stall":
            self._stall(context)
        if fault == "refuse":
            context.abort(grpc.StatusCode.UNAVAILABLE, "refused by the test")
        answer = self._pass_on(self._channel_to(method, context), method, request, context)
        if fault == "lose":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the test lost the answer")
        return self._named_by_us(answer) if method.endswith("/Connect") else answer

    def stream(self, method: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        plan = self._stream_plan(request)
        self._count(method, plan.fault)
        if plan.fault == "stall":
            self._stall(context)
        if plan.fault == "refuse":
            context.abort(grpc.StatusCode.UNAVAILABLE, "refused by the test")
        call: Any = _streaming(self._channel_to(method, context), method)(request, timeout=context.time_remaining())
        context.add_callback(lambda: call.cancel())
        try:
            for number, frame in enumerate(call):
                if number != plan.at or plan.fault == "pass":
                    yield frame
                elif plan.fault == "truncate":
                    return
                else:
                    yield from self._spoilt(frame, plan.fault, context)
        except grpc.RpcError as error:
            _abort_like(error, context)
        finally:
            call.cancel()

    def _spoilt(self, frame: bytes, fault: StreamFault, context: grpc.ServicerContext) -> Iterator[bytes]:
        if fault == "cut":
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
        if fault == "hang":
            self._stall(context)
        if fault == "corrupt":
            yield frame[:-1] + bytes((frame[-1] ^ 0x40,))
        if fault == "repeat":
            yield frame
            yield frame

    def _call_fault(self, method: str, request: bytes) -> CallFault:
        kind = method.rpartition("/")[2]
        if kind == "Connect":
            with self._lock:
                return self._connects.pop(0) if self._connects else "pass"
        parsers: dict[str, Any] = {
            "Claim": pb.ClaimRequest,
            "Complete": pb.CompleteRequest,
            "Release": pb.ReleaseRequest,
        }
        if kind not in parsers:
            return "pass"
        lease_id = parsers[kind].FromString(request).lease_id
        faults: tuple[CallFault, ...] = getattr(self._plan_of(lease_id), kind.lower())
        return _at(faults, self._turn(lease_id, kind), "pass")

    def _stream_plan(self, request: bytes) -> StreamPlan:
        try:
            lease_id = pb.Ticket.FromString(pb.ReadBlocksRequest.FromString(request).ticket).lease_id
        except Exception:
            return StreamPlan()
        if not lease_id:  # a probe
            return StreamPlan()
        return _at(self._plan_of(lease_id).read, self._turn(lease_id, "ReadBlocks"), StreamPlan())

    def _plan_of(self, lease_id: str) -> Plan:
        with self._lock:
            return self._plans.get(lease_id, Plan())

    def _turn(self, lease_id: str, kind: str) -> int:
        with self._lock:
            self._seen[lease_id, kind] += 1
            return self._seen[lease_id, kind] - 1

    def _count(self, method: str, fault: str) -> None:
        if fault != "pass":
            with self._lock:
                self.done[f"{method.rpartition('/')[2]} {fault}"] += 1

    def _stall(self, context: grpc.ServicerContext) -> NoReturn:
        ended = threading.Event()
        if context.add_callback(ended.set):
            end = _STALL_S
            while end > 0 and not ended.wait(0.02) and not self._deaf.is_set():
                end -= 0.02
        context.abort(grpc.StatusCode.UNAVAILABLE, "the test stalled this call")

    def _pass_on(self, channel: grpc.Channel, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        call: Any = _calling(channel, method).future(request, timeout=context.time_remaining())
        context.add_callback(lambda: call.cancel())
        try:
            answer: bytes = call.result()
        except grpc.RpcError as error:
            _abort_like(error, context)
        except grpc.FutureCancelledError:
            context.abort(grpc.StatusCode.CANCELLED, "the reader has gone")
        return answer

    def _named_by_us(self, answer: bytes) -> bytes:
        """The engine's endpoints, with our address in place of its KvBlocks'."""
        response = pb.ConnectResponse.FromString(answer)
        for rank in response.ranks:
            if "grpc" in rank.offers:
                with self._lock:
                    if self._blocks is None:
                        self._blocks = grpc.insecure_channel(rank.offers["grpc"].decode(), options=self._options)
                rank.offers["grpc"] = self.address.encode()
            if self.spoil_nixl and "nixl" in rank.offers:
                rank.offers["nixl"] = b"nothing that NIXL could read"
        return response.SerializeToString()

    def _channel_to(self, method: str, context: grpc.ServicerContext) -> grpc.Channel:
        with self._lock:
            channel = self._blocks if "KvBlocks" in method else self._source
        if channel is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "nobody has connected to what is behind this front now")
        return channel


class _Every(grpc.GenericRpcHandler):
    """Takes whatever is called, as bytes."""

    def __init__(self, front: FaultyFront) -> None:
        self._front = front

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if "KvBlocks" in method:
            return grpc.unary_stream_rpc_method_handler(lambda r, c: self._front.stream(method, r, c))
        return grpc.unary_unary_rpc_method_handler(lambda r, c: self._front.unary(method, r, c))


def _streaming(channel: grpc.Channel, method: str) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
    return channel.unary_stream(method)


def _calling(channel: grpc.Channel, method: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(method)


def _at(faults: tuple[Any, ...], turn: int, well: Any) -> Any:
    return faults[turn] if turn < len(faults) else well


def _abort_like(error: Any, context: grpc.ServicerContext) -> NoReturn:
    context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
    context.abort(error.code(), error.details() or "")
