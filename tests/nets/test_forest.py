"""Isolation trees as tensors, against scikit-learn and by walking the trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest

from normalcy.nets import forest
from normalcy.nets.forest import IsolationTrees, mean_search_length


@pytest.mark.parametrize(("count", "per_tree"), [(60, 256), (300, 32)])
def test_scores_equal_scikit_learn(count: int, per_tree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "random_state", lambda: 3)
    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(count, 4, generator=generator), 2 * torch.randn(50, 4, generator=generator)
    trees = IsolationTrees(15, per_tree)
    trees.learn(x)
    reference = IsolationForest(n_estimators=15, max_samples=min(per_tree, count), random_state=3).fit(x.numpy())
    np.testing.assert_allclose(trees(new).numpy(), -reference.score_samples(new.numpy()), rtol=1e-5)


def test_far_vectors_score_higher_and_scores_lie_between_0_and_1() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    trees = IsolationTrees(50, 128)
    trees.learn(x)
    near, far = trees(x), trees(torch.full((1, 3), 20.0))
    assert 0 < float(near.min()) < float(near.max()) < 1
    assert float(far) > float(near.quantile(0.99))


def test_a_vector_on_a_cut_goes_where_scikit_learn_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn compares float32 values with float64 thresholds; rounding a threshold up would move such a vector."""
    monkeypatch.setattr(forest, "random_state", lambda: 0)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    trees = IsolationTrees(5, 100)
    trees.learn(x)
    cuts = trees.cut[trees.links[:, 1] != trees.links[:, 2]].double()
    on = torch.cat([cuts.float(), torch.nextafter(cuts.float(), torch.tensor(torch.inf))])[:, None].expand(-1, 2)
    reference = IsolationForest(n_estimators=5, max_samples=100, random_state=0).fit(x.numpy())
    np.testing.assert_allclose(trees(on).numpy(), -reference.score_samples(on.numpy()), rtol=1e-5)


def test_mean_search_length_is_that_of_random_binary_trees() -> None:
    """2 H(n - 1) - 2 (n - 1) / n, where the paper takes ln(n - 1) + Euler's constant for the harmonic number H."""
    n = np.array([16, 64, 256])
    harmonic = np.array([np.sum(1 / np.arange(1, m)) for m in n])
    exact = 2 * harmonic - 2 * (n - 1) / n
    np.testing.assert_allclose(mean_search_length(torch.from_numpy(n)).numpy(), exact, atol=2 / (2 * 15))


def test_nodes_that_are_not_there_are_refused():
    """Weights may come from elsewhere."""
    trees = IsolationTrees(5, 32)
    trees.learn(torch.rand(64, 3))
    for name, value in (("roots", 10**18), ("links", 10**6), ("links", -1)):
        state = {key: one.clone() for key, one in trees.state_dict().items()}
        state[name].view(-1)[-1] = value
        with pytest.raises(ValueError, match="nodes that it does not have"):
            trees.load_state_dict(state)
        trees.learn(torch.rand(64, 3))
