from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normalcy.nets.pixelsnail import PixelSNAIL


def _model(grid: tuple[int, ...], codes: int = 5, conditions: int = 0) -> PixelSNAIL:
    torch.manual_seed(0)
    model = PixelSNAIL(grid, codes, width=8, blocks=2, heads=2, conditions=conditions).eval()
    for block in model.blocks:  # attention begins at zero, which would hide what it sees
        if hasattr(block, "out"):
            torch.nn.init.normal_(block.out.weight)
    return model


@pytest.mark.parametrize("grid", [(4, 5), (3, 3, 4)])
def test_causal_at_every_position(grid: tuple[int, ...]) -> None:
    """No output has a gradient by its own embedded code or a later one; each but the first has one by those before."""
    model, n = _model(grid), math.prod(grid)
    embedded = torch.randn(1, n, 8, requires_grad=True)
    model.embed.forward = lambda codes: embedded.view(1, *grid, 8)  # type: ignore[method-assign]
    logits = model(torch.zeros(1, *grid, dtype=torch.long)).flatten(2)  # (1, K, n)
    weights = torch.randn(logits.shape[1])
    for i in range(n):
        (gradient,) = torch.autograd.grad((weights @ logits[0, :, i]), embedded, retain_graph=True)
        seen = gradient[0].abs().sum(1) > 0
        assert not seen[i:].any(), f"position {i} sees {seen.nonzero().flatten().tolist()}"
        assert seen[:i].all(), f"position {i} is blind to some before it"


@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 4)])
def test_probabilities_add_up_over_all_tables(grid: tuple[int, ...]) -> None:
    """The chain of conditionals is a distribution: over the first codes, by brute force."""
    model = _model(grid, codes=3)
    codes = torch.cartesian_prod(*[torch.arange(3)] * 4)
    tables = torch.zeros(len(codes), math.prod(grid), dtype=torch.long)
    tables[:, :4] = codes
    with torch.no_grad():
        logits = model(tables.view(-1, *grid)).flatten(2).log_softmax(1)
    total = logits.gather(1, tables[:, None]).squeeze(1)[:, :4].sum(1).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_learns_what_comes_before_and_the_condition() -> None:
    torch.manual_seed(0)
    model = PixelSNAIL((4, 4), 4, width=16, blocks=1, heads=2, conditions=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch() -> tuple[Tensor, Tensor]:
        start = torch.randint(0, 4, (32, 1))
        step = torch.randint(0, 2, (32, 1))
        return ((start + torch.arange(16) * (1 + step)) % 4).view(-1, 4, 4), step.float()

    for _ in range(60):
        codes, condition = batch()
        loss = torch.nn.functional.cross_entropy(model(codes, condition), codes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss) < 0.6 * math.log(4), "only the first code is random"
