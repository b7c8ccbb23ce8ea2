"""The error tree, and the one table that gives every error its HTTP status, gRPC code and type.

    BatonError
    ├── ConfigError            the configuration cannot work
    ├── InvalidRequest         the client's request cannot work
    │   └── RequestTooLarge
    ├── Unauthenticated        no key, or one that is not ours
    ├── Forbidden              the key is ours, and not for this
    ├── UnknownModel
    ├── UnknownWorker          an operator named a worker that the router does not know
    ├── RetryLater             refused for now; carries `retry_after_s`
    │   ├── RetriesSpent       it failed, and the router retries too much already
    │   ├── Overloaded         the cluster's limit
    │   │   └── DeadlineUnreachable
    │   └── TenantLimited      the tenant's own limit
    ├── NoWorker               no worker can take the request now
    ├── WorkerLost             the worker went away or refused
    │   ├── WorkerStalled      it is there, and makes no progress or says nothing
    │   └── WorkersLost        one worker after the other went away under the request
    ├── EngineFailed           the engine died, cannot start or reported an error
    ├── DeadlineExceeded
    ├── ClientLost             the client left, or its body does not come, or it does not read
    ├── TransferFailed         KV blocks did not arrive
    │   ├── LeaseLost          they may have changed while they were read
    │   ├── FingerprintMismatch
    │   └── TicketRefused      bad signature, version or content
    ├── StoreUnavailable       the store that routers share does not answer
    ├── PlanImpossible         no cluster of the given hardware does what is asked
    └── StartFailed            a part of the cluster did not start in time

An error that only a module and its neighbours know stands in that module: `CollectorRefuses`, `BadFrame` and the like.
Every message says what happened and, where someone can act, what to do. All arguments go through `args`, so an error
keeps its text when it is pickled between actors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus

import grpc


class BatonError(Exception):
    """Root of all errors that Baton raises on purpose."""


class ConfigError(BatonError):
    """The configuration cannot work; the text names the key and the values that can."""


class InvalidRequest(BatonError):
    """The client's request cannot work as it is."""


class RequestTooLarge(InvalidRequest):
    """The request is larger than a limit; the text names the limit."""


class Unauthenticated(BatonError):
    """Who asks gave no key, or one that is not known here; the text says how to give one."""


class Forbidden(BatonError):
    """The key is known, and does not allow what was asked; the text says what it would take."""


class UnknownModel(BatonError):
    """The model asked for is not served here; the text names the one that is."""


class UnknownWorker(BatonError):
    """No such worker is known to this router; the text names the nearest ones."""


class RetryLater(BatonError):
    """Refused for now. `retry_after_s`: seconds after which trying again makes sense."""

    def __init__(self, text: str, retry_after_s: float = 1.0) -> None:
        super().__init__(text, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Overloaded(RetryLater):
    """The cluster has no room for the request: nothing of it was done."""


class DeadlineUnreachable(Overloaded):
    """The request cannot be answered by its deadline, so it was not begun."""


class RetriesSpent(RetryLater):
    """A worker failed the request, and the router makes too many retries already: its text has the first cause."""


class TenantLimited(RetryLater):
    """The tenant is over its own rate or concurrency; other tenants are not concerned."""


class NoWorker(BatonError):
    """No worker of the needed pool is ready."""


class WorkerLost(BatonError):
    """A worker's stream broke, or the worker refused the session."""


class WorkerStalled(WorkerLost):
    """A worker makes no progress while it has work, or says nothing while its connection stands."""


class WorkersLost(WorkerLost):
    """One worker after the other went away under the request: it may be what ends them, and is not tried again."""


class EngineFailed(BatonError):
    """The engine cannot start, died, or reported an error for one attempt."""


class DeadlineExceeded(BatonError):
    """The time allowed for the operation is over."""


class ClientLost(BatonError):
    """The client left, or was too slow to send its body or to read: its request is ended."""


class TransferFailed(BatonError):
    """The KV blocks of a ticket could not be fetched; the reader computes them itself."""


class LeaseLost(TransferFailed):
    """The writer no longer vouches for the blocks: what was read must not be used."""


class FingerprintMismatch(TransferFailed):
    """Reader and writer lay out their KV blocks differently; the text names both values."""


class TicketRefused(TransferFailed):
    """The ticket's signature, version or content is wrong."""


class StoreUnavailable(BatonError):
    """The store that routers share did not answer in time, or refused; the text has its own words."""


class PlanImpossible(BatonError):
    """No number of workers does what is asked; the text has a line for each bound that fails, and by how much."""


class StartFailed(BatonError):
    """A part of the cluster did not become ready; the text holds its own last words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an error leaves the system.

    `kind` is the `type` field of an OpenAI error object.
    """

    http: HTTPStatus
    grpc: grpc.StatusCode
    kind: str


_ANSWERS: dict[type[BaseException], Answer] = {
    RequestTooLarge: Answer(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"
    ),
    InvalidRequest: Answer(HTTPStatus.BAD_REQUEST, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"),
    Unauthenticated: Answer(HTTPStatus.UNAUTHORIZED, grpc.StatusCode.UNAUTHENTICATED, "authentication_error"),
    Forbidden: Answer(HTTPStatus.FORBIDDEN, grpc.StatusCode.PERMISSION_DENIED, "permission_error"),
    UnknownModel: Answer(HTTPStatus.NOT_FOUND, grpc.StatusCode.NOT_FOUND, "invalid_request_error"),
    UnknownWorker: Answer(HTTPStatus.NOT_FOUND, grpc.StatusCode.NOT_FOUND, "invalid_request_error"),
    Overloaded: Answer(HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded_error"),
    TenantLimited: Answer(HTTPStatus.TOO_MANY_REQUESTS, grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limit_error"),
    RetryLater: Answer(HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, "unavailable_error"),
    RetriesSpent: Answer(HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, "unavailable_error"),
    StoreUnavailable: Answer(HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, "unavailable_error"),
    NoWorker: Answer(HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, "unavailable_error"),
    WorkersLost: Answer(HTTPStatus.BAD_GATEWAY, grpc.StatusCode.INTERNAL, "internal_error"),
    WorkerLost: Answer(HTTPStatus.BAD_GATEWAY, grpc.StatusCode.UNAVAILABLE, "unavailable_error"),
    DeadlineExceeded: Answer(HTTPStatus.GATEWAY_TIMEOUT, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_error"),
    ClientLost: Answer(HTTPStatus.REQUEST_TIMEOUT, grpc.StatusCode.RESOURCE_EXHAUSTED, "timeout_error"),
    TicketRefused: Answer(HTTPStatus.BAD_REQUEST, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"),
    LeaseLost: Answer(HTTPStatus.CONFLICT, grpc.StatusCode.FAILED_PRECONDITION, "internal_error"),
    FingerprintMismatch: Answer(HTTPStatus.CONFLICT, grpc.StatusCode.FAILED_PRECONDITION, "internal_error"),
    TransferFailed: Answer(HTTPStatus.BAD_GATEWAY, grpc.StatusCode.UNAVAILABLE, "internal_error"),
    EngineFailed: Answer(HTTPStatus.BAD_GATEWAY, grpc.StatusCode.INTERNAL, "internal_error"),
}
_OTHER = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, grpc.StatusCode.INTERNAL, "internal_error")


def answer_for(error: BaseException) -> Answer:
    """How `error` leaves the system: the row of its nearest listed class."""
    return next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), _OTHER)


def retry_after_s(error: BaseException) -> int | None:
    """Whole seconds for a `Retry-After` header, at least 1; None for an error that does not say when."""
    return max(1, math.ceil(error.retry_after_s)) if isinstance(error, RetryLater) else None
