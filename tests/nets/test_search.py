from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from normalcy.nets.search import search


def _bowl(now: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    return (now[0] - targets[0]).square().sum(1)


@pytest.mark.parametrize("steps", [1, 40])
def test_the_updates_are_those_of_adam(steps: int) -> None:
    torch.manual_seed(0)
    start, target = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = search(_bowl, [start], [target], rates=[0.01], steps=steps, betas=(0.8, 0.99))
    variable = nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([variable], lr=0.01, betas=(0.8, 0.99))
    for _ in range(steps):
        optimiser.zero_grad()
        _bowl([variable], [target]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    torch.testing.assert_close(
        found.variables[0], variable.detach()
    )  # the loss still falls: the last place is the lowest
    assert found.steps.tolist() == [steps] * 3


def test_an_image_finds_the_same_in_any_company() -> None:
    """A small network, L1 loss, early stops at different steps: each image as if alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh())
    targets = torch.cat([net(torch.randn(6, 6)).detach(), torch.randn(6, 20)])

    def loss(now: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
        return (net(now[0]) - given[0]).abs().sum(1)

    def run(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = search(loss, [torch.zeros(len(part), 6)], [part], rates=[0.05], steps=300, patience=10)
        return found.variables[0], found.loss, found.steps

    codes, values, steps = run(targets)
    alone = [torch.cat(column) for column in zip(*(run(x[None]) for x in targets))]
    assert steps.unique().numel() > 3, "the images stop at different steps"
    assert steps.max() < 300
    torch.testing.assert_close(values, alone[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(codes, alone[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(steps, alone[2])


def test_a_finished_image_leaves_the_batch() -> None:
    sizes: list[int] = []

    def loss(now: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        assert len(now[0]) == len(targets[0])
        sizes.append(len(targets[0]))
        return _bowl(now, targets)

    target = torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]])
    start = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.001, 0.0]])
    found = search(loss, [start], [target], rates=[0.1], steps=30, patience=4)
    assert found.steps[1] == 30
    assert found.steps[0] == 4
    assert found.loss[0] == 0
    assert found.steps[2] < 30
    assert sizes[:5] == [3] * 5
    assert sizes[-1] == 1
    assert len(sizes) == 31


def test_the_lowest_place_is_kept() -> None:
    """A step that is far too long: the losses jump, what is given back is the best of them."""
    losses: list[float] = []

    def loss(now: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        value = _bowl(now, targets)
        losses.append(value.item())
        return value

    start, target = torch.tensor([[0.4, -0.3]]), torch.zeros(1, 2)
    found = search(loss, [start], [target], rates=[0.35], steps=20)
    assert losses[-1] > min(losses)
    assert float(found.loss) == min(losses)
    torch.testing.assert_close(_bowl(found.variables, [target]), found.loss)


def test_each_variable_has_its_rate() -> None:
    def loss(now: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        return (now[0].sum(1) + now[1].sum((1, 2)) - targets[0]).abs()

    start = [torch.zeros(2, 3), torch.zeros(2, 2, 2)]
    with torch.no_grad():
        found = search(loss, start, [torch.tensor([90.0, 90.0])], rates=[0.1, 0.0], steps=10)
    torch.testing.assert_close(found.variables[0], torch.ones(2, 3))
    assert not found.variables[1].any()
    assert not found.variables[0].requires_grad
    assert not start[0].any(), "what was given is not changed"
