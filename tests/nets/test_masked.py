"""The bidirectional prior: what its distributions depend on, pseudo-likelihoods by brute force, and refilling."""

from __future__ import annotations

import itertools
import math
from typing import cast

import pytest
import torch
from torch import Tensor

from normalcy.nets import masked
from normalcy.nets.masked import (
    SCALES,
    MaskedPrior,
    conditionals,
    draw_hidden,
    lattice,
    likelihoods,
    masked_nats,
    pseudo_likelihood,
    refill,
)

GRIDS = [(6, 5), (3, 4, 5)]


def _prior(grid: tuple[int, ...], codes: int = 5, **words: int) -> MaskedPrior:
    torch.manual_seed(0)
    prior = MaskedPrior(grid, codes, width=8, blocks=1, **words).eval()
    for block in prior.blocks:
        if isinstance(block, masked._ToMeans):
            torch.nn.init.normal_(block.out.weight, std=0.3)  # attention has no effect at first
    return prior


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_hidden_codes_do_not_matter_and_others_do(grid: tuple[int, ...]):
    prior = _prior(grid)
    codes = torch.randint(0, 5, (2, *grid))
    hidden = torch.rand(2, *grid) < 0.4
    other = torch.where(hidden, (codes + 1) % 5, codes)
    torch.testing.assert_close(prior(codes, hidden), prior(other, hidden))
    changed = codes.clone()
    changed[0].view(-1)[0] = (codes[0].view(-1)[0] + 1) % 5
    hidden[:] = False
    hidden.view(2, -1)[:, -1] = True
    here, there = prior(codes, hidden).flatten(2)[0, :, -1], prior(changed, hidden).flatten(2)[0, :, -1]
    assert not torch.allclose(here, there, atol=1e-7)  # the last sees the first, as the first would see the last


@torch.no_grad()
def test_conditions_matter():
    prior = _prior((4, 4), conditions=1)
    codes, hidden = torch.randint(0, 5, (1, 4, 4)), torch.ones(1, 4, 4, dtype=torch.bool)
    ends = [prior(codes, hidden, torch.full((1, 1), place)) for place in (-0.5, 0.5)]
    assert not torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("grid", [*GRIDS, (1, 1), (2, 7)])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_lattice_hides_every_position_once_and_no_neighbouring_block(grid: tuple[int, ...], block: int):
    masks = lattice(grid, block)
    assert masks.shape == (2 ** len(grid), *grid)
    assert bool((masks.sum(0) == 1).all())
    for mask in masks:
        places = mask.nonzero().tolist()
        for a, b in itertools.combinations(places, 2):
            same = [x // block == y // block for x, y in zip(a, b)]
            near = [abs(x // block - y // block) <= 1 for x, y in zip(a, b)]
            assert all(same) or not all(near)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", [1, 3])
@torch.no_grad()
def test_pseudo_likelihoods_are_those_of_one_pass_for_each_position(grid: tuple[int, ...], block: int):
    prior = _prior(grid)
    codes = torch.randint(0, 5, (2, *grid))
    nll, entropy = pseudo_likelihood(conditionals(prior, codes, block=block), codes)
    masks = lattice(grid, block)
    for place in itertools.product(*map(range, grid)):
        (mask,) = [m for m in masks if bool(m[place])]
        logs = prior(codes, mask.expand_as(codes)).log_softmax(1)[(slice(None), slice(None), *place)]
        for image in range(2):
            code = int(codes[(image, *place)])
            assert float(nll[(image, *place)]) == pytest.approx(-float(logs[image, code]), abs=1e-5)
            probabilities = logs[image].exp()
            expected = -float((probabilities * logs[image]).sum())
            assert float(entropy[(image, *place)]) == pytest.approx(expected, abs=1e-5)


class _Table:
    """The exact prior of a joint distribution over all grids of codes: the distribution of each code given those not hidden.
    Logits of codes that are not hidden are noise, which nothing may depend on."""

    def __init__(self, grid: tuple[int, ...], codes: int) -> None:
        self.grid, self.codes = grid, codes
        self.states = torch.tensor(list(itertools.product(range(codes), repeat=math.prod(grid)))).view(-1, *grid)
        self.chances = torch.randn(len(self.states), generator=torch.Generator().manual_seed(0)).double().softmax(0)

    def __call__(self, codes: Tensor, hidden: Tensor, conditions: Tensor | None) -> Tensor:
        assert conditions is None
        logits = torch.randn(len(codes), self.codes, *self.grid, dtype=torch.float64)
        for one, mask, out in zip(codes, hidden, logits):
            agree = ((self.states == one) | mask).flatten(1).all(1)
            for code in range(self.codes):
                chances = (self.chances[agree, *[None] * len(self.grid)] * (self.states[agree] == code)).sum(0)
                out[code] = torch.where(mask, chances.log() + 3.0, out[code])  # logits are defined up to a constant
        return logits


@pytest.mark.parametrize(("grid", "codes"), [((2, 3), 3), ((3, 3), 2), ((2, 1, 3), 3), ((2, 2, 2), 2)])
@pytest.mark.parametrize("scales", [(1,), (2,), SCALES])
def test_likelihoods_are_exact_under_an_exact_prior(grid: tuple[int, ...], codes: int, scales: tuple[int, ...]):
    """Brute force: a code and all those in blocks of the same parity along each axis are summed out of the joint table."""
    table = _Table(grid, codes)
    joint = {tuple(s.flatten().tolist()): float(p) for s, p in zip(table.states, table.chances)}
    tried = table.states[:: max(1, len(table.states) // 7)]
    nll, entropy = likelihoods(cast("MaskedPrior", table), tried, scales=scales)
    places = list(itertools.product(*map(range, grid)))
    for k, state in enumerate(tried.flatten(1).tolist()):
        for here, place in enumerate(places):
            nats, expected = 0.0, 0.0
            for block in scales:
                parity = [(x // block) % 2 for x in place]
                seen = [j for j, other in enumerate(places) if [(x // block) % 2 for x in other] != parity]
                masses = [0.0] * codes
                for other_state, p in joint.items():
                    if all(other_state[j] == state[j] for j in seen):
                        masses[other_state[here]] += p
                chances = [mass / sum(masses) for mass in masses]
                nats -= math.log(chances[state[here]]) / len(scales)
                expected -= sum(p * math.log(p) for p in chances) / len(scales)
            assert float(nll[(k, *place)]) == pytest.approx(nats, rel=1e-5)
            assert float(entropy[(k, *place)]) == pytest.approx(expected, rel=1e-5)


def test_learns_the_conditionals_of_a_known_distribution():
    """2x3 binary codes with probabilities in proportion to exp(agreeing neighbours). Masks hide no neighbours together, so that
    each conditional is exact."""
    grid, coupling = (2, 3), 0.9
    states = torch.tensor(list(itertools.product([0, 1], repeat=6))).view(-1, *grid)

    def agreement(codes: Tensor) -> Tensor:
        across = (codes[:, :, 1:] == codes[:, :, :-1]).sum((1, 2))
        return across + (codes[:, 1:] == codes[:, :-1]).sum((1, 2))

    chance = (coupling * agreement(states)).softmax(0)
    torch.manual_seed(0)
    prior = MaskedPrior(grid, 2, width=24, blocks=1)
    optimiser = torch.optim.Adam(prior.parameters(), lr=5e-3)
    slower = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=300)
    for _ in range(300):
        codes = states[torch.multinomial(chance, 256, replacement=True)]
        hidden = torch.rand(codes.shape) < 0.4
        optimiser.zero_grad()
        masked_nats(prior(codes, hidden), codes, hidden).backward()
        optimiser.step()
        slower.step()
    prior.eval()
    with torch.no_grad():
        found = conditionals(prior, states, block=1).softmax(1)[:, 1]
    for k, state in enumerate(states):
        for place in itertools.product(range(2), range(3)):
            pair = state.repeat(2, 1, 1)
            pair[(0, *place)], pair[(1, *place)] = 0, 1
            exact = (coupling * agreement(pair)).softmax(0)[1]
            assert abs(float(found[(k, *place)]) - float(exact)) < 0.12


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampled", [False, True])
@torch.no_grad()
def test_refilling_changes_nothing_but_hidden_codes(grid: tuple[int, ...], sampled: bool):
    prior = _prior(grid)
    codes = torch.randint(0, 5, (6, *grid), generator=torch.Generator().manual_seed(1))
    nll, _ = pseudo_likelihood(conditionals(prior, codes), codes)
    limit = float(nll.quantile(0.9))
    uniform = torch.rand(6, math.prod(grid), generator=torch.Generator().manual_seed(2)) if sampled else None
    found = refill(prior, codes, nll, limit, uniform=uniform)
    hidden = masked.widened(nll > limit, 1)
    assert bool(found.changed.any())
    assert not bool((found.changed & ~hidden).any())
    assert torch.equal(found.codes[~hidden], codes[~hidden])
    again = refill(prior, codes, nll, limit, uniform=uniform)
    assert torch.equal(found.codes, again.codes)
    for k in range(6):  # each grid alone as in the batch
        alone = refill(
            prior, codes[k : k + 1], nll[k : k + 1], limit, uniform=None if uniform is None else uniform[k : k + 1]
        )
        assert torch.equal(alone.codes[0], found.codes[k])
    assert set(found.passes.tolist()) <= {0, 3}
    untouched = refill(prior, codes, nll, float(nll.max()) + 1, uniform=uniform)
    assert torch.equal(untouched.codes, codes)
    assert untouched.passes.tolist() == [0] * 6


@torch.no_grad()
def test_one_round_takes_the_likeliest_codes_and_more_rounds_the_most_certain_first():
    prior = _prior((5, 5))
    codes = torch.randint(0, 5, (1, 5, 5))
    nll = torch.zeros(1, 5, 5)
    nll[0, 2, 2] = 9.0
    hidden = masked.widened(nll > 1, 1)
    logits = prior(codes, hidden)
    once = refill(prior, codes, nll, 1.0, rounds=1)
    assert torch.equal(once.codes[hidden], logits.argmax(1)[hidden])
    chances = logits.softmax(1).amax(1)[hidden]
    first = torch.zeros(9, dtype=torch.bool)
    first[chances.argsort(descending=True)[:3]] = True
    thrice = refill(prior, codes, nll, 1.0, rounds=3)
    assert torch.equal(thrice.codes[hidden][first], logits.argmax(1)[hidden][first])


def test_training_hides_blocks():
    torch.manual_seed(0)
    hidden = draw_hidden(400, (16, 16))
    fractions = hidden.float().mean((1, 2))
    assert 0.3 < float(fractions.mean()) < 0.4
    assert float(fractions.min()) < 0.15
    alike = (hidden[:, :, 1:] == hidden[:, :, :-1]).float().mean((1, 2))
    assert float(alike.max()) > 0.9  # blocks of eight
    logits, codes = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    some = torch.rand(2, 4, 4) < 0.5
    exact = -logits.log_softmax(1).gather(1, codes[:, None])[:, 0][some].mean()
    torch.testing.assert_close(masked_nats(logits, codes, some), exact)
    assert float(masked_nats(logits, codes, torch.zeros(2, 4, 4, dtype=torch.bool))) == 0
