"""A conversation with the model over `Inference.Generate`: the turns so far, and one streamed answer at a time."""

from __future__ import annotations

from collections.abc import Generator

import grpc

from deploy.cli.outcome import Exit, Stop, rpc_stop
from protos.baton.v1 import inference_pb2, inference_pb2_grpc

_COMPLETE = ("stop", "length", "repetition")


class Conversation:
    """Remembers what was said, also of an answer that was broken off."""

    def __init__(
        self, channel: grpc.Channel, endpoint: str, model: str, sampling: inference_pb2.SamplingParameters
    ) -> None:
        self._stub = inference_pb2_grpc.InferenceStub(channel)
        self._endpoint = endpoint
        self._model = model
        self._sampling = sampling
        self._turns: list[inference_pb2.ChatMessage] = []

    def instruct(self, text: str) -> None:
        self._turns.append(inference_pb2.ChatMessage(role="system", content=text))

    def ask(self, text: str, timeout_s: float) -> Generator[str, None, None]:
        """The answer, piece by piece. Closing the iterator cancels the request.

        Raises `Stop` when the answer fails or ends before its end; a question without any answer is forgotten.
        """
        question = inference_pb2.ChatMessage(role="user", content=text)
        call = self._stub.Generate(self._request(question), timeout=timeout_s)
        said: list[str] = []
        finish = ""
        try:
            for response in call:
                for delta in response.deltas:
                    finish = delta.finish_reason or finish
                    said.append(delta.text)
                    yield delta.text
        except grpc.RpcError as error:
            raise rpc_stop(error, self._endpoint, timeout_s) from error
        finally:
            call.cancel()  # no effect on a finished call
            if answer := "".join(said):
                self._turns += [question, inference_pb2.ChatMessage(role="assistant", content=answer)]
        if finish not in _COMPLETE:
            raise Stop(f"{self._endpoint}: the answer broke off: {finish or 'no finish reason'}", Exit.FAILED)

    def _request(self, question: inference_pb2.ChatMessage) -> inference_pb2.GenerateRequest:
        chat = inference_pb2.ChatPrompt(messages=[*self._turns, question])
        return inference_pb2.GenerateRequest(model=self._model, chat=chat, sampling=self._sampling)
