"""What accelerators can do at best, as their makers say, and how much of it an engine gets.

The table's figures are peaks without sparsity, in bytes and operations a second; links count one direction. CPUs differ
too much to be listed: measure one and make its `Hardware`. It must not know models.

Sources of the table: the makers' data sheets. H100 SXM: "NVIDIA H100 Tensor Core GPU" (BF16 1,979 and FP8 3,958 TFLOPS
with sparsity, half of it without; 80 GB, 3.35 TB/s, NVLink 900 GB/s in both directions). H200 SXM: "NVIDIA H200 Tensor
Core GPU" (computes as H100; 141 GB, 4.8 TB/s). A100: "NVIDIA A100 Tensor Core GPU", 80 GB SXM (BF16 312 TFLOPS, no FP8;
2,039 GB/s, NVLink 600 GB/s). L40S: "NVIDIA L40S" (BF16 362, FP8 733 TFLOPS; 48 GB, 864 GB/s, no NVLink: PCIe 4.0 x16,
64 GB/s). B200: "NVIDIA HGX B200" (for 8: BF16 36, FP8 72 PFLOPS with sparsity; each 180 GB, 7.7 TB/s, NVLink 1.8 TB/s).
Network: what the makers' reference servers give each GPU: DGX H100, H200 and B200 400 Gbit/s, DGX A100 200 Gbit/s, OVX
L40S two cards of 200 Gbit/s for four GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.nearest import unknown_name


@dataclass(frozen=True, slots=True)
class Hardware:
    """One accelerator. `fp8_flops` is None where it cannot compute on 8-bit floats. `link`: to its neighbours in the
    same machine, of which there are `per_machine` with itself; `network`: to other machines.

    `accelerator_type` is Ray's name of it. `price` is an assumption, in US dollars an hour: about what clouds asked for
    one on demand in 2025. Prices differ by more than half between sellers; give your own.
    """

    name: str
    flops: float
    fp8_flops: float | None
    memory: float
    bandwidth: float
    link: float
    link_name: str
    network: float
    price: float
    accelerator_type: str
    per_machine: int = 8


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How much of the peaks a running engine gets, and what it pays on top. Assumptions until they are measured.

    `compute`, `memory`, `link`: shares of the peaks. Large matrix products alone reach about 0.8 of them on an H100
    (780 TFLOPS: H. He, "H100 peak matmul FLOPS"), and what lies between them costs some more. `overlap`: how much
    of the shorter of computing and reading is hidden behind the longer; 1 is the ideal roofline. `step_s`: of each
    step, for scheduling and sampling. `layer_s`: of each layer, for starting its kernels from a recorded graph.
    `reduce_s`: latency of one all-reduce. `usable_memory`: the share that the engine may take; `reserve_bytes` of
    that, on each accelerator, for activations and graphs.
    """

    compute: float = 0.6
    memory: float = 0.8
    link: float = 0.7
    overlap: float = 0.75
    step_s: float = 0.002
    layer_s: float = 0.00001
    reduce_s: float = 0.00001
    usable_memory: float = 0.9
    reserve_bytes: float = 4e9


GUESSED = Efficiency()
IDEAL = Efficiency(1.0, 1.0, 1.0, 1.0, step_s=0.0, layer_s=0.0, reduce_s=0.0, usable_memory=1.0, reserve_bytes=0.0)

_TABLE = (
    Hardware("H100", 989.4e12, 1_978.9e12, 80e9, 3.35e12, 450e9, "NVLink", 50e9, 3.0, "H100"),
    Hardware("H200", 989.4e12, 1_978.9e12, 141e9, 4.8e12, 450e9, "NVLink", 50e9, 3.8, "H200"),
    Hardware("A100", 312e12, None, 80e9, 2.039e12, 300e9, "NVLink", 25e9, 1.9, "A100"),
    Hardware("L40S", 362.05e12, 733e12, 48e9, 864e9, 32e9, "PCIe", 12.5e9, 1.2, "L40S"),
    Hardware("B200", 2_250e12, 4_500e12, 180e9, 7.7e12, 900e9, "NVLink", 50e9, 5.5, "B200"),
)
HARDWARE = {each.name: each for each in _TABLE}


def hardware(name: str) -> Hardware:
    """Raises `ConfigError` with the nearest known names."""
    if name.upper() in HARDWARE:
        return HARDWARE[name.upper()]
    if name.lower() == "cpu":
        raise ConfigError(f"hardware cpu: no figures are known before one is measured; known: {', '.join(HARDWARE)}")
    raise unknown_name("hardware", name, HARDWARE)
