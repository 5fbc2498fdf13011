from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normalcy.nets.pixelsnail import PixelSNAIL
from normalcy.nets.restore import (
    LikelyCodes,
    SampledCodes,
    later_neighbours_max,
    negative_log_likelihood,
    restore,
    scan,
)

K = 4


def _prior(grid: tuple[int, ...], seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    torch.manual_seed(seed)
    model = PixelSNAIL(grid, K, width=4, blocks=1, heads=1, conditions=1).double().eval()
    for p in model.parameters():  # a random network, sharp enough for codes to matter
        torch.nn.init.normal_(p, std=0.7)
    condition = torch.linspace(-1, 1, 8).double()[:, None]
    return lambda codes, rows: model(codes, condition[rows % 8]).double()


def _rule(name: str, grid: tuple[int, ...], count: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if name == "sampled":
        return SampledCodes(1.0, torch.rand(count, math.prod(grid), generator=generator))
    return LikelyCodes(0.2, grid, local=name == "likely, local")


@pytest.mark.parametrize("name", ["likely", "likely, local", "sampled"])
@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 3)])
def test_equals_the_scan(name: str, grid: tuple[int, ...]) -> None:
    """Batches of 7 tables by 6 priors for each rule and grid: 252 cases, identical in every code, with k + 1 passes."""
    changes = 0
    for seed in range(6):
        prior = _prior(grid, seed)
        codes = torch.randint(0, K, (7, *grid), generator=torch.Generator().manual_seed(seed))
        rule = _rule(name, grid, 7, seed)
        found = restore(prior, codes, rule)
        assert torch.equal(found.codes, scan(prior, codes, rule))
        assert torch.equal(found.changed, found.codes != codes)
        k = found.changed.flatten(1).sum(1)
        last = found.changed.flatten(1)[:, -1]  # nothing is left to look at after a change of the last code
        assert torch.equal(found.passes, k + 1 - last.long())
        changes += int(k.sum())
    assert changes > 40, "the cases must have something to restore"


def test_tables_do_not_depend_on_their_batch() -> None:
    grid, prior = (3, 4), _prior((3, 4), 0)
    codes = torch.randint(0, K, (5, *grid), generator=torch.Generator().manual_seed(1))
    rule = LikelyCodes(0.3, grid, local=False)
    together = restore(prior, codes, rule)
    for i in range(5):
        alone = restore(lambda c, rows, i=i: prior(c, rows + i), codes[i : i + 1], rule)
        assert torch.equal(alone.codes[0], together.codes[i])
        assert alone.passes[0] == together.passes[i]
    assert torch.allclose(
        together.nll.flatten(1),
        negative_log_likelihood(prior(codes, torch.arange(5)).flatten(2), codes.flatten(1)).float(),
    )


def test_restored_codes_are_all_likely() -> None:
    grid, prior = (4, 4), _prior((4, 4), 3)
    codes = torch.randint(0, K, (6, *grid), generator=torch.Generator().manual_seed(2))
    found = restore(prior, codes, LikelyCodes(0.1, grid, local=False))
    nll = negative_log_likelihood(prior(found.codes, torch.arange(6)).flatten(2), found.codes.flatten(1))
    assert float(nll.max()) <= -math.log(0.1) + 1e-9


def test_samples_follow_the_conditional() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = probabilities.log().view(1, K, 1).expand(20000, K, 1)
    uniform = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0))
    rule = SampledCodes(-1.0, uniform)
    drawn = rule(logits, torch.zeros(20000, 1, dtype=torch.long), torch.arange(20000))
    shares = torch.bincount(drawn.flatten(), minlength=K) / 20000
    torch.testing.assert_close(shares, probabilities, atol=0.015, rtol=0)


def test_local_constraint_looks_at_the_lower_half() -> None:
    """Equation 5: the neighbours to the right, lower left, below and lower right."""
    for place, later in (((1, 1), [(1, 2), (2, 0), (2, 1), (2, 2)]), ((0, 2), [(1, 1), (1, 2)])):
        for other in [(i, j) for i in range(3) for j in range(3)]:
            values = torch.zeros(1, 3, 3)
            values[0][other] = 1
            assert (later_neighbours_max(values)[0][place] == 1) == (other in later)
