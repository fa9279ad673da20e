"""How the GPUs of one host are linked. In: a card's name, or NVML. Out: a Link with its rate. No torch.

Sources: NVIDIA's data sheets of the cards, which give both directions together; here is one. What NCCL reaches of it: see REACHED.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UserError
from stages.core.planner_cards import Card

# NCCL's protocol takes about a fifth of a link (its maintainer on NVIDIA/nccl-tests issue 212: 370 of an H100's 450 GB/s); for PCIe the
# same share is taken without a measurement
REACHED = 0.8
COLLECTIVE_SECONDS = 20e-6  # to start one collective operation; an order of magnitude, not measured here
NVLINK_LANE = {5: 50.0}  # GB/s of one NVLink each way by its generation (Blackwell's whitepaper); earlier ones have:
NVLINK_LANE_BEFORE = 25.0  # (V100's, A100's and H100's whitepapers)
# GB/s each way between cards of a kind that are sold with NVLink between all (SXM), or take a bridge between two
NVLINK = {
    "A100-SXM4-40GB": 300.0,
    "A100-SXM4-80GB": 300.0,
    "H100 80GB HBM3": 450.0,
    "H200": 450.0,
}
BRIDGE = {"RTX 3090": 56.25, "RTX A6000": 56.25, "A100 80GB PCIe": 300.0, "H100 PCIe": 300.0}
# GeForce drivers let no two cards read each other's memory over PCIe
NO_P2P = ("RTX 30", "RTX 40", "RTX 50")
KINDS = {"nvlink": "NVLink", "p2p": "PCIe with P2P", "host": "PCIe without P2P, through host memory"}


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between any two GPUs of a host.

    Attributes:
        kind: nvlink | p2p | host.
        bandwidth: one way, GB/s, as published; of `host`, half of PCIe's, since every byte passes it twice.
    """

    kind: str
    bandwidth: float

    @property
    def told(self) -> str:
        """In words."""
        return f"{KINDS[self.kind]}, {self.bandwidth:g} GB/s one way"

    def seconds(self, moved_bytes: float, operations: int = 1) -> float:
        """For a GPU to send so many bytes while it receives as many, in so many collective operations."""
        return moved_bytes / (self.bandwidth * REACHED * 1e9) + operations * COLLECTIVE_SECONDS


def link_of(card: Card, kind: str | None = None) -> Link:
    """The link that cards of a kind usually have, or one of the kind asked for.

    Args:
        card: one of the planner's table, or named like it.
        kind: nvlink | p2p | host; None takes NVLink where the card is sold with it, else P2P where its driver allows it.

    Returns:
        The link.

    Raises:
        UserError: the card has no NVLink.
    """
    name = next((name for name in (NVLINK | BRIDGE) if name in card.name or card.name in name), None)
    if kind is None:
        kind = "nvlink" if name in NVLINK else "host" if any(series in card.name for series in NO_P2P) else "p2p"
    if kind != "nvlink":
        return Link(kind, card.host_bandwidth * (2 if kind == "p2p" else 1))
    if name is None:
        raise UserError(f"{card.name} has no NVLink that the planner knows; take --link p2p or host")
    return Link("nvlink", (NVLINK | BRIDGE)[name])


@dataclass(frozen=True, slots=True)
class Pair:
    """What the driver says of two GPUs.

    Attributes:
        first: its place on the host.
        second: likewise.
        nvlink: GB/s one way, 0 without NVLink.
        p2p: whether each can read the other's memory.
        pcie: GB/s one way of the slower card's slot, or None where the driver does not tell.
        ancestor: where their PCIe paths meet.
    """

    first: int
    second: int
    nvlink: float
    p2p: bool
    pcie: float | None
    ancestor: str

    @property
    def kind(self) -> str:
        """nvlink | p2p | host."""
        return "nvlink" if self.nvlink else "p2p" if self.p2p else "host"

    @property
    def bandwidth(self) -> float | None:
        """GB/s one way; None where the driver does not tell."""
        return self.nvlink or (None if self.pcie is None else self.pcie if self.p2p else self.pcie / 2)


P2P_READ, P2P_NVLINK = 0, 2  # nvmlGpuP2PCapsIndex_t of nvml.h; nvidia-ml-py 13 has tuples of them, which its own function does not take
PCIE_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # GB/s one way by generation (PCI-SIG)


def pairs(uuids: Sequence[str] | None = None) -> list[Pair]:
    """Every two GPUs of this host, as NVML tells; none without a driver.

    Args:
        uuids: of the GPUs meant, in their order; None takes all of the host, in NVML's.

    Returns:
        The pairs.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        if uuids is None:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        else:
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except Exception:  # no driver, no card, or no right to ask
        return []
    both = [(first, second) for second in range(len(handles)) for first in range(second)]
    return [_pair(pynvml, handles, first, second) for first, second in both]


def _pair(nvml: Any, handles: Sequence[Any], first: int, second: int) -> Pair:
    one, other = handles[first], handles[second]
    joined = _allowed(nvml, one, other, P2P_NVLINK)
    nvlink = min(_nvlink(nvml, one), _nvlink(nvml, other)) if joined else 0.0
    slots = [_slot(nvml, handle) for handle in (one, other)]
    known = [slot for slot in slots if slot is not None]
    p2p = all(_allowed(nvml, *way, P2P_READ) for way in ((one, other), (other, one)))
    return Pair(first, second, nvlink, p2p, min(known) if len(known) == 2 else None, _ancestor(nvml, one, other))


def _allowed(nvml: Any, one: Any, other: Any, what: int) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetP2PStatus(one, other, what) == nvml.NVML_P2P_STATUS_OK)
    except nvml.NVMLError:
        return False


def _nvlink(nvml: Any, handle: Any) -> float:
    """GB/s one way of all active NVLinks of a card, whether they end at another card or at a switch."""
    total = 0.0
    for lane in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, lane) == nvml.NVML_FEATURE_ENABLED:
                total += NVLINK_LANE.get(nvml.nvmlDeviceGetNvLinkVersion(handle, lane), NVLINK_LANE_BEFORE)
        except nvml.NVMLError:  # the card has fewer
            break
    return total


def _slot(nvml: Any, handle: Any) -> float | None:
    """What a card's PCIe slot carries at most (its present rate sinks while the card idles), or None in a virtual machine that hides it."""
    try:
        return PCIE_LANE[nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)] * int(nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))
    except (nvml.NVMLError, KeyError):
        return None


def _ancestor(nvml: Any, one: Any, other: Any) -> str:
    """Where the PCIe paths of two cards meet."""
    words = {
        nvml.NVML_TOPOLOGY_INTERNAL: "on one board",
        nvml.NVML_TOPOLOGY_SINGLE: "under one PCIe switch",
        nvml.NVML_TOPOLOGY_MULTIPLE: "under several PCIe switches",
        nvml.NVML_TOPOLOGY_HOSTBRIDGE: "under one host bridge",
        nvml.NVML_TOPOLOGY_NODE: "in one NUMA node",
        nvml.NVML_TOPOLOGY_SYSTEM: "across processors",
    }
    try:
        return words[nvml.nvmlDeviceGetTopologyCommonAncestor(one, other)]
    except (nvml.NVMLError, KeyError):
        return "by an unknown path"


def installed_link(gpus: int, card: Card) -> Link:
    """The slowest link between the first GPUs of this host; that which cards of the kind usually have, if it has not as many.

    Args:
        gpus: how many.
        card: of the host.

    Returns:
        The link.
    """
    found = [pair for pair in pairs() if pair.second < gpus]
    if not found or any(pair.bandwidth is None for pair in found) or max(pair.second for pair in found) < gpus - 1:
        return link_of(card)
    slowest = min(found, key=lambda pair: pair.bandwidth or 0.0)
    return Link(slowest.kind, round(slowest.bandwidth or 0.0, 1))
