"""scikit-learn's isolation forest (Liu, Ting, Zhou 2008) as tensors: vectors isolated by few random cuts are anomalous."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor, nn

from normalcy.nets.seeds import random_state


class IsolationTrees(nn.Module):
    """Vectors (B, k) -> scores (B,) in (0, 1), the negative of scikit-learn's ``score_samples``. Call :meth:`learn`
    before use."""

    roots: Tensor
    links: Tensor
    cut: Tensor
    path_length: Tensor
    expected_length: Tensor

    def __init__(self, trees: int, per_tree: int) -> None:
        super().__init__()
        self.trees, self.per_tree = trees, per_tree
        self.depth = math.ceil(math.log2(max(per_tree, 2)))  # scikit-learn grows no tree deeper
        # The nodes of all trees in one list: roots (trees,); of each node the index of the feature that it cuts and its two
        # children (n, 3), its threshold (n,), and the path length of a vector that ends there (n,).
        for name in ("roots", "links", "cut", "path_length"):
            whole = name in ("roots", "links")
            self.register_buffer(name, torch.empty(0, dtype=torch.long if whole else torch.float32))
        self.register_buffer("expected_length", torch.tensor(1.0))

        self.register_load_state_dict_post_hook(_refuse_wrong)  # type: ignore[no-untyped-call]

    def learn(self, x: Tensor) -> None:
        """Grow the trees on vectors (N, k), each on a random subset of ``per_tree``."""
        per_tree = min(self.per_tree, len(x))
        forest = IsolationForest(n_estimators=self.trees, max_samples=per_tree, random_state=random_state())
        self._take_over(forest.fit(x.cpu().numpy()))
        self.expected_length = mean_search_length(torch.tensor(per_tree))

    def _take_over(self, forest: IsolationForest) -> None:
        roots, links, cut, path_length, offset = [], [], [], [], 0
        for estimator in forest.estimators_:
            tree = estimator.tree_
            number = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            # A leaf is its own child, so that a step from it changes nothing.
            below = np.where(leaf, number, tree.children_left) + offset
            above = np.where(leaf, number, tree.children_right) + offset
            links.append(torch.from_numpy(np.stack([np.maximum(tree.feature, 0), below, above], 1)))
            cut.append(torch.from_numpy(_rounded_down(tree.threshold)))
            depth = torch.from_numpy(tree.compute_node_depths() - 1)
            path_length.append(depth + mean_search_length(torch.from_numpy(tree.n_node_samples.copy())))
            roots.append(offset)
            offset += tree.node_count
        self.roots, self.links = torch.tensor(roots), torch.cat(links)
        self.cut, self.path_length = torch.cat(cut), torch.cat(path_length)

    def forward(self, x: Tensor) -> Tensor:
        score: Tensor = 2 ** (-self._mean_path_length(x) / self.expected_length)
        return score

    def _mean_path_length(self, x: Tensor) -> Tensor:
        """Mean over the trees of the path lengths of vectors (B, k): (B,). All vectors descend all trees at once."""
        node = self.roots.expand(len(x), -1)  # (B, trees)
        for _ in range(self.depth):
            feature, below, above = self.links[node].unbind(-1)
            feature = feature.clamp(max=x.shape[1] - 1)  # weights may come from elsewhere
            node = torch.where(x.gather(1, feature) <= self.cut[node], below, above)
        return self.path_length[node].mean(1)


def _refuse_wrong(forest: IsolationTrees, _: object) -> None:
    """Numbers of nodes from a file that lead out of the trees."""
    count = len(forest.links)
    nodes = torch.cat([forest.roots.flatten(), forest.links[:, 1:].flatten()]) if count else forest.roots
    sound = forest.links.ndim == 2 and len(forest.cut) == len(forest.path_length) == count
    if not sound or (len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < count) or (forest.links < 0).any():
        raise ValueError("a tree of the forest names nodes that it does not have")


def mean_search_length(n: Tensor) -> Tensor:
    """c(n): mean length of an unsuccessful search in a binary search tree of n nodes (equation 1 of the paper; 1 for two, as in
    scikit-learn).

    >>> mean_search_length(torch.tensor([1, 2, 256]))
    tensor([ 0.0000,  1.0000, 10.2448])
    """
    m = n.clamp(min=3).double()
    long = 2 * ((m - 1).log() + np.euler_gamma) - 2 * (m - 1) / m
    return torch.where(n > 2, long, (n == 2).double()).float()


def _rounded_down(values: np.ndarray) -> np.ndarray:
    """float64 -> float32, towards minus infinity: ``x <= value`` then means the same for every float32 x."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)
