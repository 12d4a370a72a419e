"""Which rank trains which sample of a batch: pure functions of (batch, nodes, ranks a node).

Losses and norms are exact over ranks, so any assignment trains the same. Two things want different ones: a sample is
read where its stream is read, which leaves ranks with very different numbers of voxels, and everybody waits for the
rank with the most. So samples go to ranks within a node as balance asks, which costs nothing, and a few of a batch
(MOST_EXCHANGED) to other nodes, which costs their bytes a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

MOST_EXCHANGED = 0.06  # of the samples of a batch
BALANCED = 1.02  # of the mean number of voxels: nodes below it exchange nothing


@dataclass(frozen=True)
class Nodes:
    """The machines of a run.

    Attributes:
        of_rank: the node of each rank, numbered from 0.
    """

    of_rank: tuple[int, ...]

    @classmethod
    def equal(cls, world_size: int, ranks_per_node: int) -> Nodes:
        """Nodes of so many ranks one after the other; the last may have fewer."""
        return cls(tuple(rank // ranks_per_node for rank in range(world_size)))

    @property
    def world_size(self) -> int:
        """Ranks of all nodes."""
        return len(self.of_rank)

    def beside(self, rank: int) -> tuple[int, ...]:
        """The ranks of its node, itself among them."""
        return tuple(other for other, node in enumerate(self.of_rank) if node == self.of_rank[rank])

    def of_stream(self, streams: IntArray) -> IntArray:
        """The node that reads each stream: that of its home rank, streams taking turns over the ranks."""
        return np.array(self.of_rank)[streams % self.world_size]


def ranks_of_batch(streams: IntArray, voxels: IntArray | None, nodes: Nodes) -> IntArray:
    """The rank that trains each sample of a (micro-)batch. Shares of ranks differ by at most one sample.

    Args:
        streams: (n,) the stream of each sample.
        voxels: (n,) voxels of each, above 0; None where they are not known, and nothing is balanced.
        nodes: the machines.

    Returns:
        (n,) int64.
    """
    if nodes.world_size == 1:
        return np.zeros(len(streams), np.int64)
    home = streams % nodes.world_size
    shares = _shares(home, nodes.world_size)
    of_rank = np.array(nodes.of_rank)
    room = np.bincount(of_rank, shares, minlength=of_rank.max() + 1).astype(np.int64)
    node_of_sample = of_rank[home]
    budget = int(MOST_EXCHANGED * len(streams)) - _fill(node_of_sample, room)
    if voxels is None:
        return _near_home(home, node_of_sample, shares, of_rank)
    budget = _exchange(node_of_sample, voxels, np.bincount(of_rank), budget)
    ranks = _spread(node_of_sample, voxels, shares, of_rank)
    _swap(ranks, voxels, of_rank, budget)
    return ranks


def _shares(home: IntArray, world_size: int) -> IntArray:
    """(W,) samples of each rank: the odd ones go to ranks at home with most."""
    base, odd = divmod(len(home), world_size)
    shares = np.full(world_size, base, np.int64)
    at_home = np.bincount(home, minlength=world_size)
    shares[np.argsort(-at_home, kind="stable")[:odd]] += 1
    return shares


def _fill(node_of_sample: IntArray, room: IntArray) -> int:
    """Move the last samples of nodes that have too many to those that have too few; returns how many."""
    counts = np.bincount(node_of_sample, minlength=len(room))
    takers = np.repeat(np.arange(len(room)), np.maximum(room - counts, 0))
    givers = [np.flatnonzero(node_of_sample == node)[room[node] :] for node in np.flatnonzero(counts > room)]
    if givers:
        node_of_sample[np.concatenate(givers)] = takers
    return len(takers)


def _exchange(node_of_sample: IntArray, voxels: IntArray, ranks_per_node: IntArray, budget: int) -> int:
    """Swap samples between the fullest and the emptiest node while that helps; returns what is left of the budget."""
    loads = np.bincount(node_of_sample, voxels, minlength=len(ranks_per_node)) / ranks_per_node
    mean = float(voxels.sum()) / float(ranks_per_node.sum())
    while budget >= 2 and loads.max() > BALANCED * mean:
        most, least = int(loads.argmax()), int(loads.argmin())
        wanted = (loads[most] - loads[least]) / (1 / ranks_per_node[most] + 1 / ranks_per_node[least])
        givers, takers = np.flatnonzero(node_of_sample == most), np.flatnonzero(node_of_sample == least)
        moved = voxels[givers][:, None] - voxels[takers][None, :]
        give, take = np.unravel_index(np.abs(moved - wanted).argmin(), moved.shape)
        if not 0 < moved[give, take] < 2 * wanted:
            break
        node_of_sample[givers[give]], node_of_sample[takers[take]] = least, most
        loads[most] -= moved[give, take] / ranks_per_node[most]
        loads[least] += moved[give, take] / ranks_per_node[least]
        budget -= 2
    return budget


def _spread(node_of_sample: IntArray, voxels: IntArray, shares: IntArray, of_rank: IntArray) -> IntArray:
    """Samples of every node to its ranks: the largest first, each to the emptiest rank that has room."""
    ranks_of_node, room = _by_node(of_rank, shares)
    loads = np.where(room > 0, 0, np.iinfo(np.int64).max // 2)
    samples = np.lexsort((-voxels, node_of_sample))
    counts = np.bincount(node_of_sample, minlength=len(room))
    firsts = np.cumsum(counts) - counts
    ranks = np.empty(len(voxels), np.int64)
    for turn in range(int(counts.max(initial=0))):  # the next sample of every node at once
        busy = np.flatnonzero(counts > turn)
        sample, place = samples[firsts[busy] + turn], loads[busy].argmin(axis=1)
        ranks[sample] = ranks_of_node[busy, place]
        loads[busy, place] += voxels[sample]
        room[busy, place] -= 1
        loads[busy, place] += np.where(room[busy, place] == 0, np.iinfo(np.int64).max // 2, 0)
    return ranks


def _by_node(of_rank: IntArray, shares: IntArray) -> tuple[IntArray, IntArray]:
    """(M, R) ranks of each node, and their shares; nodes with fewer ranks have ranks 0 without a share."""
    counts = np.bincount(of_rank)
    order = np.argsort(of_rank, kind="stable")
    place = np.arange(len(of_rank)) - np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.zeros((len(counts), counts.max()), np.int64)
    room = np.zeros_like(ranks)
    ranks[of_rank[order], place], room[of_rank[order], place] = order, shares[order]
    return ranks, room


def _swap(ranks: IntArray, voxels: IntArray, of_rank: IntArray, budget: int) -> None:
    """Swap a sample of the fullest rank for another, as long as the two ranks are then less full than it was.

    With any rank of its own node, and where that does not make it BALANCED, with any rank at all within the budget.
    """
    loads = np.bincount(ranks, voxels, minlength=len(of_rank))
    settled = BALANCED * loads.mean()
    for _ in range(len(of_rank)):
        most = int(loads.argmax())
        if loads[most] <= settled:
            return
        givers, takers = np.flatnonzero(ranks == most), np.flatnonzero(ranks != most)
        moved = voxels[givers][:, None] - voxels[takers][None, :]
        after = np.maximum(loads[most] - moved, loads[ranks[takers]][None, :] + moved)
        near = of_rank[ranks[takers]] == of_rank[most]
        best = float(after[:, near].min(initial=np.inf))
        if best > settled and budget >= 2 and after.min() < best:
            budget -= 2
        else:
            after[:, ~near] = np.inf
        if not len(takers) or after.min() >= loads[most]:
            return
        give, take = np.unravel_index(after.argmin(), after.shape)
        other = ranks[takers[take]]
        ranks[givers[give]], ranks[takers[take]] = other, most
        loads[most] -= moved[give, take]
        loads[other] += moved[give, take]


def _near_home(home: IntArray, node_of_sample: IntArray, shares: IntArray, of_rank: IntArray) -> IntArray:
    """Samples to the ranks that they are at home with, as far as there is room, else to another of their node."""
    ranks = home.copy()
    by_home = np.argsort(home, kind="stable")
    counts = np.bincount(home, minlength=len(shares))
    turn = np.arange(len(home)) - np.repeat(np.cumsum(counts) - counts, counts)
    moved = (node_of_sample[by_home] != of_rank[home[by_home]]) | (turn >= shares[home[by_home]])
    movers = by_home[moved]
    room = shares - np.bincount(home[by_home[~moved]], minlength=len(shares))
    free = np.repeat(np.arange(len(shares)), room)
    ranks[movers[np.argsort(node_of_sample[movers], kind="stable")]] = free[np.argsort(of_rank[free], kind="stable")]
    return ranks


def slowest_share(ranks: IntArray, voxels: IntArray, world_size: int) -> float:
    """Voxels of the rank with the most, over the mean of all ranks: by so much everybody waits."""
    loads = np.bincount(ranks, voxels, minlength=world_size)
    return float(loads.max() / loads.mean())
