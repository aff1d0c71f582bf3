"""The nodes of a run side by side: how fast, how busy, and whether they answer alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, mode
from typing import Any

from l2s_hpc.records import Receipt, cold

PHASES = ("start", "merge", "load", "generate", "grade", "write")
"""The phases of an attempt in their order; a node may name others."""


@dataclass(frozen=True)
class Node:
    """What the accepted tables of one node tell. What its engine cannot tell is None.

    Attributes:
        candidates: how many score tables it made.
        tokens_per_second, gpu_idle, batch_occupancy: medians over these; the last two are shares.
        peak_gpu_gb, peak_host_gb: the highest of all, in 1e9 bytes.
        seconds: by phase, the median over the tables; of `start` over those tables before which a
            worker started.
        fingerprints: what its engines answered the canary, the most frequent first; none where
            the engine has no canary.
    """

    host: str
    device: str
    candidates: int
    tokens_per_second: float | None
    gpu_idle: float | None
    batch_occupancy: float | None
    peak_gpu_gb: float | None
    peak_host_gb: float | None
    seconds: dict[str, float]
    fingerprints: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """The most frequent answer to the canary; empty where there is none."""
        return self.fingerprints[0] if self.fingerprints else ""


def nodes(receipts: Iterable[Receipt]) -> list[Node]:
    """Return the nodes that receipts name, by device and host."""
    found: dict[tuple[str, str], list[Receipt]] = {}
    for receipt in receipts:
        found.setdefault((receipt.device, receipt.host), []).append(receipt)
    return [_node(*key, found[key]) for key in sorted(found)]


def node_rows(found: Sequence[Node]) -> list[dict[str, Any]]:
    """Return nodes for programs: all that a `Node` tells, and whether it is the odd one.

    `odd` is true where its engine has answered the canary in several ways, or not as most nodes
    with its device have (see `differences`), null where there is no canary.
    """
    return [
        {
            "node": node.host,
            "device": node.device,
            "fingerprint": node.fingerprint or None,
            "odd": _is_odd(node, found),
            "candidates": node.candidates,
            "tokens_per_second": node.tokens_per_second,
            "gpu_idle": node.gpu_idle,
            "batch_occupancy": node.batch_occupancy,
            "peak_gpu_gb": node.peak_gpu_gb,
            "peak_host_gb": node.peak_host_gb,
            "seconds": node.seconds,
        }
        for node in found
    ]


def _is_odd(node: Node, found: Sequence[Node]) -> bool | None:
    if not node.fingerprint:
        return None
    return len(node.fingerprints) > 1 or node.fingerprint != _usual(_peers(node.device, found))


def _peers(device: str, found: Sequence[Node]) -> list[Node]:
    """Return the nodes with a device whose engines have answered the canary."""
    return [node for node in found if node.device == device and node.fingerprint]


def _usual(peers: Sequence[Node]) -> str:
    """Return the answer of more than half of the nodes; empty where there is none."""
    answers = [node.fingerprint for node in peers]
    usual = mode(answers) if answers else ""
    return usual if 2 * answers.count(usual) > len(answers) else ""


def differences(found: Sequence[Node]) -> list[str]:
    """Return a sentence for each node whose engine answers unlike the others of its device.

    Nothing is refused for it: greedy answers may differ between cards that should be equal, and
    whoever compares their candidates has to know.
    """
    said = [
        f"Node {node.host} has answered the canary in {len(node.fingerprints)} ways: its own "
        "results may not be comparable with each other."
        for node in found
        if len(node.fingerprints) > 1
    ]
    for device in dict.fromkeys(node.device for node in found):
        said += _differences(_peers(device, found))
    return said


def _differences(peers: Sequence[Node]) -> list[str]:
    """Compare nodes of one device."""
    usual = _usual(peers)
    odd = [node for node in peers if node.fingerprint != usual]
    if odd and not usual:
        hosts = ", ".join(node.host for node in peers)
        ways = len({node.fingerprint for node in peers})
        return [
            f"The {len(peers)} nodes with {peers[0].device} answer the canary in {ways} "
            f"ways, none of them that of most: results of {hosts} may not be comparable; not "
            "refused."
        ]
    most, others = len(peers) - len(odd), len(peers) - 1
    word = "the other node" if others == 1 else f"the {others} other nodes"
    whom = word if most == others else f"{most} of {word}"
    return [
        f"Node {node.host} answers the canary differently from {whom} with the same device "
        f"({node.device}): its results may not be comparable; not refused."
        for node in odd
    ]


def _node(device: str, host: str, receipts: Sequence[Receipt]) -> Node:
    def usage(name: str) -> list[float]:
        return [receipt.usage[name] for receipt in receipts if name in receipt.usage]

    def middle(name: str) -> float | None:
        return median(values) if (values := usage(name)) else None

    prints = Counter(receipt.fingerprint for receipt in receipts if receipt.fingerprint)
    return Node(
        host=host,
        device=device,
        candidates=len(receipts),
        tokens_per_second=middle("tokens_per_second"),
        gpu_idle=middle("gpu_idle"),
        batch_occupancy=middle("batch_occupancy"),
        peak_gpu_gb=max(usage("peak_gpu_gb"), default=None),
        peak_host_gb=max(usage("peak_host_gb"), default=None),
        seconds=_seconds(receipts),
        fingerprints=tuple(name for name, _ in prints.most_common()),
    )


def _seconds(receipts: Sequence[Receipt]) -> dict[str, float]:
    there = dict.fromkeys(phase for receipt in receipts for phase in receipt.seconds)
    ordered = [p for p in PHASES if p in there] + [p for p in there if p not in PHASES]
    return {phase: _median(phase, receipts) for phase in ordered}


def _median(phase: str, receipts: Sequence[Receipt]) -> float:
    values = [receipt.seconds[phase] for receipt in receipts if phase in receipt.seconds]
    return median(cold(values) if phase == "start" else values)
