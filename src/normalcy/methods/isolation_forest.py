"""Isolation forest: strange images are separated from the others by few random cuts.

Source: Liu, Ting, Zhou 2008; 100 trees on 256 images each, as there. Fitted with scikit-learn; the score is the negative of
its ``score_samples``, in (0, 1). With ``features=backbone`` and
``variance=none`` it is the Deep IF of Tuluptceva et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import IsolationForest as Forest
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.features import Features, FeatureSettings, random_state


@dataclass(frozen=True)
class IsolationForestSettings(FeatureSettings):
    trees: int = 100
    images_per_tree: int = 256
    """Drawn at random for each tree."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trees < 1 or self.images_per_tree < 2:
            raise SettingsError("isolation_forest: trees must be at least 1, images_per_tree at least 2.")


class IsolationForest(Method):
    name = "isolation_forest"
    Settings = IsolationForestSettings
    spatial_dims = (2, 3)
    settings: IsolationForestSettings
    roots: Tensor
    links: Tensor
    cut: Tensor
    path_length: Tensor
    expected_length: Tensor

    def __init__(self, settings: IsolationForestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.features = Features(settings, self.shape)
        # The nodes of all trees in one list: roots (trees,); of each node the feature it cuts and its two children (n, 3),
        # where it cuts (n,), and the path length of an image that ends there (n,).
        self.learned("roots", "links", "cut", "path_length")
        self.register_buffer("expected_length", torch.tensor(1.0))

    def stages(self) -> Sequence[Stage]:
        return [Stage("forest", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        x = self.features.learn(batches)
        per_tree = min(self.settings.images_per_tree, len(x))
        forest = Forest(n_estimators=self.settings.trees, max_samples=per_tree, random_state=random_state())
        self._take_over(forest.fit(x.cpu().numpy()))
        self.expected_length = mean_search_length(torch.tensor(per_tree))

    def _take_over(self, forest: Forest) -> None:
        roots, links, cut, path_length, offset = [], [], [], [], 0
        for estimator in forest.estimators_:
            tree = estimator.tree_
            number = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            # A leaf is its own child: walking on from it changes nothing.
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

    def _score(self, x: Tensor) -> Scores:
        return Scores(image=2 ** (-self._mean_path_length(self.features(x)) / self.expected_length))

    def _mean_path_length(self, x: Tensor) -> Tensor:
        """Over the trees, of features (B, k) -> (B,). All images walk down all trees at once."""
        node = self.roots.expand(len(x), -1)  # (B, trees)
        while True:
            feature, below, above = self.links[node].unbind(-1)
            following = torch.where(x.gather(1, feature) <= self.cut[node], below, above)
            if torch.equal(following, node):
                return self.path_length[node].mean(1)
            node = following


def mean_search_length(n: Tensor) -> Tensor:
    """c(n): mean length of an unsuccessful search in a binary tree of n (equation 1 of the paper; 1 for two, as in sklearn).

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
