"""Graphics cards: the published figures of common ones, and the one in this machine. In: a name, or NVML. Out: a Card. No torch.

Sources: NVIDIA's architecture whitepapers (Ampere GA102, Ada AD102, Blackwell GB202, A100, H100) and product data sheets. Rates are of
bfloat16 tensor cores without sparsity, summing in float32, at boost clock.
"""

import re
from dataclasses import dataclass, replace

from stages.core.errors import UserError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """What a card can do.

    Attributes:
        name: as sold.
        memory_bytes: all of it.
        tflops: 10^12 operations a second in bfloat16.
        bandwidth: of its memory, GB/s.
        watts: its power limit.
        host_bandwidth: to host memory and back, GB/s, half of what PCIe names.
        known: whether the figures are published ones, or a guess from the memory's size.
    """

    name: str
    memory_bytes: int
    tflops: float
    bandwidth: float
    watts: float
    host_bandwidth: float
    known: bool = True


CARDS = [
    Card(name, gib * GIB, tflops, bandwidth, watts, host)
    for name, gib, tflops, bandwidth, watts, host in [
        ("RTX 3060", 12, 25, 360, 170, 12),
        ("RTX 4060 Ti", 16, 44, 288, 165, 6),
        ("RTX 4070 Ti SUPER", 16, 88, 672, 285, 12),
        ("RTX 4080", 16, 97.5, 717, 320, 12),
        ("RTX 5080", 16, 113, 960, 360, 24),
        ("RTX 3090", 24, 71, 936, 350, 12),
        ("RTX 4090", 24, 165, 1008, 450, 12),
        ("A10", 24, 125, 600, 150, 12),
        ("L4", 24, 121, 300, 72, 12),
        ("RTX 5090", 32, 210, 1792, 575, 24),
        ("A100-SXM4-40GB", 40, 312, 1555, 400, 12),
        ("RTX A6000", 48, 155, 768, 300, 12),
        ("RTX 6000 Ada", 48, 364, 960, 300, 12),
        ("L40S", 48, 362, 864, 350, 12),
        ("A100-SXM4-80GB", 80, 312, 2039, 400, 12),
        ("A100 80GB PCIe", 80, 312, 1935, 300, 12),
        ("H100 PCIe", 80, 756, 2039, 350, 24),
        ("H100 80GB HBM3", 80, 989, 3352, 700, 24),
        ("RTX PRO 6000", 96, 504, 1792, 600, 24),
        ("H200", 141, 989, 4800, 700, 24),
    ]
]
BRANDS = {"nvidia", "geforce", "tesla", "quadro", "generation", "workstation", "edition", "blackwell"}


def named(name: str, memory_bytes: int | None = None) -> Card:
    """The card of a name, as a person or the driver gives it.

    Args:
        name: such as `RTX 4090`, `4090` or `NVIDIA GeForce RTX 4090`.
        memory_bytes: what the driver says, or None.

    Returns:
        The card with the published figures, and the driver's name and memory. An unknown name with a known memory gets the figures of
        the slowest card of about that memory.

    Raises:
        UserError: the name is unknown and no memory is given.
    """
    asked = _words(name)
    # every word of the one is in the other; of several, the one with most words in common (and the right memory)
    fits = [card for card in CARDS if _words(card.name) <= asked or asked <= _words(card.name)]
    if fits:
        near = min(fits, key=lambda card: (-len(_words(card.name) & asked), abs(card.memory_bytes - (memory_bytes or card.memory_bytes))))
        return near if memory_bytes is None else replace(near, name=name, memory_bytes=memory_bytes)
    if memory_bytes is None:
        known = ", ".join(card.name for card in CARDS)
        raise UserError(f"--gpu {name} is no card known here and no size; give a size (--gpu 24GiB) or one of: {known}")
    return replace(of_size(memory_bytes), name=name, memory_bytes=memory_bytes, known=False)


def of_size(memory_bytes: int) -> Card:
    """The slowest listed card of the nearest memory: a plan for a size promises no more than its owner will get."""
    nearest = min(abs(card.memory_bytes - memory_bytes) for card in CARDS)
    slowest = min((card for card in CARDS if abs(card.memory_bytes - memory_bytes) == nearest), key=lambda card: card.tflops)
    return replace(slowest, name=f"a card of {memory_bytes / GIB:.4g} GiB (speed of {slowest.name})", memory_bytes=memory_bytes)


def asked_for(text: str) -> Card:
    """The card that `--gpu` names: a size (24GiB, 24 GB, 24) or a name."""
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?\s*", text, re.I)
    if size and float(size[1]) <= 1024:  # 4090 is a name
        return of_size(int(float(size[1]) * GIB))
    return named(text)


def installed() -> Card | None:
    """The first card of this machine as NVML tells it, with its own power limit; None without an NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name, memory = pynvml.nvmlDeviceGetName(handle), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception:  # no driver, no card, or no right to ask: all mean that there is none to plan for
        return None
    card = named(name, memory)
    try:
        return replace(card, watts=pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
    except pynvml.NVMLError:
        return card


def _words(name: str) -> set[str]:
    """The words of a card's name that tell it from others; 40GB and 40 GB are the same."""
    joined = re.sub(r"(\d)\s+(gb)\b", r"\1\2", name.lower())
    return {word for word in re.split(r"[\s\-_]+", joined) if word and word not in BRANDS}
