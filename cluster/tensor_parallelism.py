"""Over how many accelerators an engine can split a model. It must not know time."""

from __future__ import annotations

from cluster.hardware import Hardware
from cluster.model_shape import DenseForward, GroupedAttention, LayerGroup, ModelShape


def tensor_parallel_sizes(shape: ModelShape, hardware: Hardware) -> tuple[int, ...]:
    """Powers of two up to one machine by which heads and widths can be divided; key and value heads may be copied."""
    sizes = (1 << power for power in range(hardware.per_machine.bit_length()))
    return tuple(size for size in sizes if all(_divides(size, group) for group in shape.layers))


def _divides(size: int, group: LayerGroup) -> bool:
    attention, forward = group.attention, group.forward
    if attention.heads % size:
        return False
    if isinstance(attention, GroupedAttention) and attention.kv_heads % size and size % attention.kv_heads:
        return False
    # Routed experts are padded by engines where their width does not divide; dense layers are not.
    return not isinstance(forward, DenseForward) or forward.width % size == 0
