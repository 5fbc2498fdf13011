"""Coreset and nearest neighbours against brute force."""

import pytest
import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.nets import neighbours
from normalcy.nets.neighbours import Reservoir, covering_radius, k_centre, nearest, random_projection


def clustered(n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(20, 16, generator=g)
    return centres[torch.randint(20, (n,), generator=g)] + torch.randn(n, 16, generator=g)


def plain_greedy(points: Tensor, count: int) -> list[int]:
    """Gonzalez' algorithm as written, in double precision."""
    points = points.double()
    chosen = [0]
    far = (points - points[0]).norm(dim=1)
    while len(chosen) < count:
        chosen.append(int(far.argmax()))
        far = torch.minimum(far, (points - points[chosen[-1]]).norm(dim=1))
    return chosen


@pytest.mark.parametrize("pool", [1, 7, 100, 5000])
def test_batched_selection_is_the_plain_one(pool: int):
    points = clustered(1500)
    assert k_centre(points, 150, pool=pool).tolist() == plain_greedy(points, 150)


@pytest.mark.parametrize("slack", [0.1, 0.3])
def test_slack_keeps_its_bound(slack: float):
    """Chosen points lie (1 - slack) of the covering radius apart, which is what bounds it by 2 / (1 - slack) of the best."""
    points = clustered(3000)
    chosen = points[k_centre(points, 100, slack, pool=50)]
    apart = torch.cdist(chosen, chosen).fill_diagonal_(torch.inf).min()
    assert apart >= (1 - slack) * covering_radius(points, chosen) - 1e-4


def test_covering_radius_is_close_to_the_exact_one_and_far_better_than_chance():
    points = clustered(5000)
    exact = covering_radius(points, points[k_centre(points, 200)])
    fast = covering_radius(points, points[k_centre(points, 200, slack=0.1)])
    chance = covering_radius(points, points[:200])
    assert fast <= 1.1 * exact
    assert exact < 0.9 * chance


def test_coreset_ends_when_all_is_covered():
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    repeated = points.repeat(4, 1)
    assert sorted(i % 5 for i in k_centre(repeated, 5).tolist()) == [0, 1, 2, 3, 4]
    assert len(k_centre(points, 50)) == 5
    assert k_centre(torch.zeros(9, 2), 4).tolist() == [0]
    with pytest.raises(SettingsError, match="slack in"):
        k_centre(points, 2, slack=1.0)


@pytest.mark.parametrize("k", [1, 4])
def test_nearest_is_brute_force(k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "LARGEST_BLOCK", 5000)  # several blocks
    memory, queries = clustered(700, 1), clustered(90, 2)
    expected = torch.cdist(queries.double(), memory.double()).topk(k, dim=1, largest=False)
    distances, indices = nearest(queries, memory, k)
    assert torch.equal(indices, expected.indices)
    assert torch.allclose(distances.double(), expected.values, atol=1e-5)


def test_distances_are_safe_far_from_the_origin():
    """|a|^2 - 2ab + |b|^2 alone would lose all digits here."""
    memory = clustered(300) + 1e4
    distances, indices = nearest(memory + 1e-2, memory)
    assert indices.flatten().tolist() == list(range(300))
    assert torch.allclose(distances, torch.full((300, 1), 0.04), atol=5e-3)
    assert nearest(memory, memory)[0].max() == 0


def test_more_neighbours_than_there_are():
    assert nearest(torch.zeros(2, 3), torch.ones(4, 3), k=9)[0].shape == (2, 4)


def test_reservoir_is_uniform_over_the_stream():
    torch.manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(1000):
        sample = Reservoir(10)
        for part in torch.arange(40.0).split([3, 25, 1, 11]):
            sample.add(part.unsqueeze(1))
        assert sample.rows.unique().numel() == 10
        counts[sample.rows.flatten().long()] += 1
    # each row is kept with probability 1/4: 250 +- 13.7
    assert (counts - 250).abs().max() < 4 * 13.7


def test_reservoir_keeps_a_short_stream_whole():
    sample = Reservoir(10)
    sample.add(torch.arange(4.0).unsqueeze(1))
    assert sample.rows.flatten().tolist() == [0, 1, 2, 3]


def test_random_projection_keeps_distances():
    torch.manual_seed(0)
    a, b = torch.randn(2, 400, 500)
    ratio = ((a - b) @ random_projection(500, 128)).norm(dim=1) / (a - b).norm(dim=1)
    assert abs(float(ratio.mean()) - 1) < 0.02
    assert float(ratio.std()) == pytest.approx(1 / 16, rel=0.2)


@pytest.mark.parametrize("kind", ["clustered", "uniform", "far from zero", "nearly equal", "outliers", "copies"])
def test_candidates_in_bfloat16_give_the_nearest(kind: str):
    """The same as measuring all distances in float32, also where the search in bfloat16 alone would be wrong."""
    g = torch.Generator().manual_seed(1)
    memory, queries = torch.randn(1003, 24, generator=g), torch.randn(300, 24, generator=g)
    match kind:
        case "clustered":
            memory, queries = clustered(1003), clustered(300, seed=1)
        case "uniform":
            memory, queries = memory.sigmoid(), queries.sigmoid()
        case "far from zero":
            memory, queries = memory + 1000, queries + 1000
        case "nearly equal":
            memory, queries = 1 + 1e-5 * memory, 1 + 1e-5 * queries
        case "outliers":
            memory[::100] *= 50
        case "copies":
            queries = memory[:300].clone()
    distances, indices = neighbours._nearest_by_bf16(queries, memory)
    assert distances.shape == indices.shape == (300, 1)
    measured = torch.stack([(query - memory).norm(dim=1) for query in queries])
    assert torch.equal(distances[:, 0], measured.amin(1))
    assert torch.equal(measured.gather(1, indices), distances)


def test_search_without_candidates_stays_within_the_memory():
    _, indices = neighbours._nearest_by_bf16(torch.full((2, 4), torch.nan), torch.eye(4))
    assert indices.max() < 4


@pytest.mark.parametrize("size", [1, 3, 16, 17, 1003])
@pytest.mark.parametrize("shift", [0, 1000])
def test_groups_give_the_nearest(size: int, shift: float):
    """The search of exported graphs, against all distances in float64; copies of a row are equally near."""
    memory, queries = clustered(1003)[:size] + shift, clustered(300, seed=1) + shift
    distances, indices = neighbours._nearest_by_groups(queries, memory, memory.mean(0))
    expected = torch.cdist(queries.double(), memory.double())
    assert distances.shape == indices.shape == (300, 1)
    assert torch.allclose(distances[:, 0].double(), expected.amin(1), rtol=1e-5, atol=1e-5)
    assert torch.allclose(expected.gather(1, indices), expected.amin(1, keepdim=True), rtol=1e-5, atol=1e-5)
    found = neighbours._nearest_by_groups(memory, memory, memory.mean(0))
    assert found[0].max() == 0
    assert torch.equal(memory[found[1][:, 0]], memory)
