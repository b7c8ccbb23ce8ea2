"""What steps of a dense model take on a GPU, beside what the cost model says of them.

    python -m tests.benchmarks.gpu_steps [--json] [--model NAME] [--hardware NAME] [--rounds N]

The steps are a plain PyTorch decoder of the model's shape with random weights in bfloat16, its layers compiled and
recorded as a CUDA graph: what an engine computes, without what it schedules and samples. `predicted_ms` therefore
leaves out the model's `step_s`. Medians of the rounds, timed on the GPU. Its steps were checked on a CPU; it was not
run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from cluster.cost_model import CostModel
from cluster.hardware import GUESSED, IDEAL, hardware
from cluster.model_config import model_shape
from cluster.model_shape import DenseForward, GroupedAttention, ModelShape

PROMPTS = (128, 512, 2048, 8192)
DECODES = ((1, 1024), (8, 1024), (32, 1024), (128, 1024), (256, 1024), (1, 8192), (8, 8192), (32, 8192))
_WARM_ROUNDS = 3


class Decoder:
    """One step: hidden vectors of some tokens in, logits of the last ones out."""

    def __init__(self, shape: ModelShape) -> None:
        group = shape.layers[0]
        attention, forward = group.attention, group.forward
        assert isinstance(attention, GroupedAttention), "dense models with grouped attention only"
        assert isinstance(forward, DenseForward)
        self.attention, self.shape = attention, shape
        heads = attention.heads + 2 * attention.kv_heads
        hidden, size = shape.hidden, attention.head_size
        self.layers = [
            (
                _weights(heads * size, hidden),
                _weights(hidden, attention.heads * size),
                _weights(2 * forward.width, hidden),
                _weights(hidden, forward.width),
                _weights(hidden),
                _weights(hidden),
            )
            for _ in range(shape.layer_count)
        ]
        self.head = _weights(shape.vocabulary, hidden)
        self.turns = torch.randn(1, size // 2, device="cuda", dtype=torch.bfloat16)
        self._mixed, self._split = torch.compile(_mixed, dynamic=False), torch.compile(_split, dynamic=False)

    def prefill(self, tokens: int) -> Callable[[], Any]:
        start = _weights(tokens, self.shape.hidden)

        def step() -> Any:
            hidden = start
            for layer in self.layers:
                query, keys, values = self._split(hidden, layer[0], layer[4], self.turns, self.attention)
                query, keys, values = (each.transpose(0, 1)[None] for each in (query, keys, values))
                mixed = functional.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)
                hidden = self._mixed(hidden, mixed[0].transpose(0, 1).reshape(tokens, -1), layer)
            return functional.linear(hidden[-1:], self.head)

        return step

    def decode(self, sequences: int, context: int) -> Callable[[], Any]:
        attention = self.attention
        kv_heads, size, queries = attention.kv_heads, attention.head_size, attention.heads // attention.kv_heads
        start = _weights(sequences, self.shape.hidden)
        caches = [_weights(2, sequences, kv_heads, context + 1, size) for _ in self.layers]

        def step() -> Any:
            hidden = start
            for layer, cache in zip(self.layers, caches, strict=True):
                query, keys, values = self._split(hidden, layer[0], layer[4], self.turns, attention)
                cache[0, :, :, context], cache[1, :, :, context] = keys, values
                grouped = query.view(sequences, kv_heads, queries, size)  # all queries of a key's head in one row
                mixed = functional.scaled_dot_product_attention(grouped, cache[0], cache[1])
                hidden = self._mixed(hidden, mixed.reshape(sequences, -1), layer)
            return functional.linear(hidden, self.head)

        return step


def _split(hidden: Any, matrix: Any, norm: Any, turns: Any, attention: GroupedAttention) -> tuple[Any, Any, Any]:
    """Queries, keys and values, (tokens, heads, size) each; positions are turned as rotary embeddings turn them."""
    heads = (attention.heads, attention.kv_heads, attention.kv_heads)
    normed = functional.rms_norm(hidden, norm.shape, norm)
    rows = functional.linear(normed, matrix).view(len(hidden), sum(heads), attention.head_size)
    query, keys, values = rows.split(heads, dim=1)
    return _turned(query, turns), _turned(keys, turns), values


def _turned(rows: Any, turns: Any) -> Any:
    first, second = rows.chunk(2, dim=-1)
    return torch.cat((first * turns - second, second * turns + first), dim=-1)


def _mixed(hidden: Any, attended: Any, layer: tuple[Any, ...]) -> Any:
    _, out, up, down, _, norm = layer
    hidden = hidden + functional.linear(attended, out)
    gate, wide = functional.linear(functional.rms_norm(hidden, norm.shape, norm), up).chunk(2, dim=-1)
    return hidden + functional.linear(functional.silu(gate) * wide, down)


def _weights(*size: int) -> Any:
    return torch.randn(*size, device="cuda", dtype=torch.bfloat16) * 0.02


def measured_s(step: Callable[[], Any], rounds: int) -> float:
    """Of one replay of the recorded step."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside), torch.no_grad():
        for _ in range(_WARM_ROUNDS):
            step()
    aside.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        step()
    took = []
    for _ in range(_WARM_ROUNDS + rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        took.append(begin.elapsed_time(end) / 1000)
    return statistics.median(took[_WARM_ROUNDS:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--hardware", default="H200")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    shape = model_shape(options.model)
    guess = CostModel(shape, hardware(options.hardware), efficiency=replace(GUESSED, step_s=0.0))
    ideal = CostModel(shape, hardware(options.hardware), efficiency=IDEAL)
    decoder = Decoder(shape)
    steps: list[dict[str, object]] = []

    def note(name: str, sizes: dict[str, int], seconds: float, models: tuple[float, float]) -> None:
        predicted, peak = models
        figures = {"measured_ms": seconds, "predicted_ms": predicted, "at_peak_ms": peak}
        row = {"step": name, **sizes, **{key: round(1000 * each, 3) for key, each in figures.items()}}
        steps.append(row | {"predicted_of_measured": round(predicted / seconds, 3)})
        print(json.dumps(steps[-1]), flush=True)

    for tokens in PROMPTS:
        seconds = measured_s(decoder.prefill(tokens), options.rounds)
        note("prefill", {"tokens": tokens}, seconds, (guess.prefill_s(tokens), ideal.prefill_s(tokens)))
    torch.compiler.reset()  # it compiles for so many sizes only
    for count, context in DECODES:
        seconds = measured_s(decoder.decode(count, context), options.rounds)
        models = guess.decode_s(count, context), ideal.decode_s(count, context)
        note("decode", {"sequences": count, "context": context}, seconds, models)
    device = torch.cuda.get_device_name()
    document = {"device": device, "model": options.model, "hardware": options.hardware, "steps": steps}
    print(json.dumps(document, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
