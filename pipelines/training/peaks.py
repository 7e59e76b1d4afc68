"""What a GPU computes at most, by its name: what a training's rate is held against."""

from __future__ import annotations

import re

_PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    # pattern of torch's name, bfloat16 and float32 in TFLOP/s, from NVIDIA's data sheets and architecture
    # white papers. Dense: their figures "with sparsity" are twice these. bfloat16 with sums in float32, on
    # tensor cores; float32 outside of them, as torch computes it unless told otherwise.
    (r"B200", 2250, None),  # HGX B200, an eighth
    (r"(GH200 480GB|H200( \d+GB HBM3e)?)", 989.4, 66.9),
    (r"H200 NVL", 835.5, 60.3),
    (r"H100 80GB HBM3", 989.4, 66.9),
    (r"H100 NVL", 835.5, 60.3),
    (r"H100 PCIe", 756.4, 51.2),
    (r"(A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe)", 312, 19.5),
    (r"A800-SXM4-\d+GB|A800 80GB PCIe", 312, 19.5),
    (r"A30", 165, 10.3),
    (r"A40", 149.7, 37.4),
    (r"A10", 125, 31.2),
    (r"A10G", 70, 35),
    (r"L4", 121, 30.3),
    (r"L40", 181, 90.5),
    (r"L40S", 362, 91.6),
    (r"RTX A6000", 154.8, 38.7),
    (r"RTX 6000 Ada Generation", 364.2, 91.1),
    (r"GeForce RTX 3090", 71, 35.6),
    (r"GeForce RTX 4080", 97.5, 48.7),
    (r"GeForce RTX 4090", 165.2, 82.6),
    (r"GeForce RTX 5090", 209.5, 104.8),
    (r"V100-SXM2-\d+GB(-LS)?", None, 15.7),  # no bfloat16 of its own
    (r"V100-PCIE-\d+GB", None, 14),
    (r"T4", None, 8.1),
)
_NAME = re.compile(r"(?:NVIDIA |Tesla )*(.*)")


def peak(name: str, *, precision: str) -> float | None:
    """FLOP/s of a device that torch calls `name`, in "float32" or "bfloat16"; None of one that is not known,
    of a part of one (MIG), and of a laptop's."""
    told = _NAME.fullmatch(name.strip())
    assert told is not None
    for pattern, half, single in _PEAKS:
        if re.fullmatch(pattern, told[1]):
            found = half if precision == "bfloat16" else single
            return None if found is None else found * 1e12
    return None
