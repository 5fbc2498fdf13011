from __future__ import annotations

import pytest
import torch

from normalcy.nets.quantise import AGE, Quantiser


def _vectors(count: int = 4, grid: tuple[int, ...] = (3, 5), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, *grid, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_nearest_by_brute_force(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    quantiser, z = Quantiser(10, 6), _vectors(grid=grid)
    found = quantiser(z)
    rows = z.movedim(1, -1).reshape(-1, 6)
    expected = torch.cdist(rows, quantiser.book).argmin(1).view(4, *grid)
    assert torch.equal(found.codes, expected)
    torch.testing.assert_close(found.vectors, quantiser.book[expected].movedim(-1, 1))
    difference = (rows - quantiser.book[expected.flatten()]).square().mean()
    torch.testing.assert_close(found.codebook, difference)
    torch.testing.assert_close(found.commitment, difference)


def test_gradients() -> None:
    """Straight through for what the decoder says; the codebook term moves codes alone, the commitment z_e alone."""
    torch.manual_seed(0)
    quantiser, z = Quantiser(10, 6), _vectors().requires_grad_()
    found = quantiser(z)
    weights = torch.randn_like(z)
    through, book = torch.autograd.grad(
        (weights * found.vectors).sum(), [z, quantiser.book], retain_graph=True, allow_unused=True
    )
    assert torch.equal(through, weights)
    assert book is None
    assert torch.autograd.grad(found.codebook, z, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(found.commitment, quantiser.book, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(found.codebook, quantiser.book)[0].abs().sum() > 0


def test_moving_average_finds_the_means() -> None:
    torch.manual_seed(0)
    quantiser = Quantiser(2, 6, ema=0.9)
    centres = torch.stack([torch.full((6,), -2.0), torch.full((6,), 2.0)])
    z = (centres[torch.arange(40) % 2] + 0.1 * torch.randn(40, 6)).T.reshape(1, 6, 5, 8)
    quantiser.seed([z])
    for _ in range(200):
        quantiser(z)
    means = torch.stack([z.flatten(2)[0].T[k::2].mean(0) for k in range(2)])
    order = quantiser.book[:, 0].argsort()
    torch.testing.assert_close(quantiser.book[order], means, atol=1e-3, rtol=1e-3)
    assert not list(quantiser.parameters())


def test_seeded_codes_are_all_in_use() -> None:
    torch.manual_seed(0)
    quantiser, z = Quantiser(16, 6), 5 + 0.1 * _vectors(8, (4, 4))
    assert float(quantiser(z).perplexity) < 6, "at random places most codes are too far away"
    quantiser.seed([z])
    assert float(quantiser(z).perplexity) > 8


@pytest.mark.parametrize("ema", [None, 0.99])
def test_dead_codes_start_anew(ema: float | None) -> None:
    torch.manual_seed(0)
    quantiser, z = Quantiser(4, 6, ema=ema), _vectors(2)
    quantiser.seed([z])
    quantiser.book.data[3] = 100.0
    quantiser.total[3] = 100.0
    for _ in range(AGE - 1):
        quantiser(z)
    assert quantiser.book[3].min() > 50, "not yet"
    quantiser(z)
    rows = z.movedim(1, -1).reshape(-1, 6)
    assert (rows - quantiser.book[3]).abs().sum(1).min() < 1e-6, "at one of the vectors"
    quantiser.eval()
    before = {name: value.clone() for name, value in quantiser.state_dict().items()}
    quantiser(z)
    assert all(torch.equal(value, before[name]) for name, value in quantiser.state_dict().items())
