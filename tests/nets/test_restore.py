from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from normalcy.nets.pixelsnail import Memory, PixelSNAIL
from normalcy.nets.restore import (
    LikelyCodes,
    Prior,
    SampledCodes,
    later_neighbours_max,
    negative_log_likelihood,
    restore,
    scan,
    whole,
)

K = 4


def _model(grid: tuple[int, ...], seed: int) -> PixelSNAIL:
    torch.manual_seed(seed)
    model = PixelSNAIL(grid, K, width=4, blocks=1, heads=1, conditions=1).double().eval()
    for p in model.parameters():  # a random network, sharp enough for codes to matter
        torch.nn.init.normal_(p, std=0.7)
    return model


CONDITION = torch.linspace(-1, 1, 8).double()[:, None]


def _prior(grid: tuple[int, ...], seed: int) -> Prior:
    model = _model(grid, seed)
    return whole(lambda codes, rows: model(codes, CONDITION[rows % 8]))


def _rule(name: str, grid: tuple[int, ...], count: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if name == "sampled":
        return SampledCodes(1.0, torch.rand(count, math.prod(grid), generator=generator))
    return LikelyCodes(0.2, grid, local=name == "likely, local")


@pytest.mark.parametrize("lines", [None, 1, 2])
@pytest.mark.parametrize("name", ["likely", "likely, local", "sampled"])
@pytest.mark.parametrize("grid", [(5, 4), (2, 3, 3)])
def test_equals_the_scan(name: str, grid: tuple[int, ...], lines: int | None) -> None:
    """Batches of 7 tables by 6 priors for each rule and grid: 252 cases, identical in every code, with k + 1 passes; of
    the whole grid, or of a number of lines from a cache."""
    changes, work = 0, 0.0
    for seed in range(6):
        model, slow = _model(grid, seed), _prior(grid, seed)
        codes = torch.randint(0, K, (7, *grid), generator=torch.Generator().manual_seed(seed))
        rule = _rule(name, grid, 7, seed)
        prior = slow if lines is None else Memory(model, CONDITION[:7], lines, rule.ahead)
        found = restore(prior, codes, rule)
        assert torch.equal(found.codes, scan(slow, codes, rule))
        assert torch.equal(found.changed, found.codes != codes)
        k = found.changed.flatten(1).sum(1)
        last = found.changed.flatten(1)[:, -1]  # nothing is left to look at after a change of the last code
        assert torch.equal(found.passes, k + 1 - last.long())
        if lines is None:
            torch.testing.assert_close(found.work, found.passes.float())
        changes, work = changes + int(k.sum()), work + float(found.work.sum())
        first = negative_log_likelihood(model(codes, CONDITION[:7]).flatten(2), codes.flatten(1))
        torch.testing.assert_close(found.nll.flatten(1), first.float())
    assert changes > 40, "the cases must have something to restore"
    if lines == 1 and not rule.ahead:
        assert work < 0.5 * (changes + 6 * 7), "a memory computes less than whole passes"


def test_copies_of_a_table_are_looked_at_once() -> None:
    grid, model = (5, 4), _model((5, 4), 1)
    codes = torch.randint(0, K, (2, *grid), generator=torch.Generator().manual_seed(3)).repeat_interleave(3, 0)
    rule = _rule("sampled", grid, 6, 0)
    conditions = CONDITION[:2].repeat_interleave(3, 0)
    seen: list[int] = []
    model.register_forward_hook(lambda module, words, logits: seen.append(len(logits)))
    found = restore(Memory(model, conditions, copies=3), codes, rule)
    assert seen[0] == 2
    slow = whole(lambda table, rows: model(table, conditions[rows]))
    assert torch.equal(found.codes, scan(slow, codes, rule))
    assert not torch.equal(found.codes[0], found.codes[1])


def test_memory_too_short_for_the_rule_is_refused() -> None:
    grid = (5, 4)
    codes = torch.randint(0, K, (2, *grid), generator=torch.Generator().manual_seed(0))
    rule = LikelyCodes(0.2, grid)
    with pytest.raises(AssertionError, match="ahead"):
        restore(Memory(_model(grid, 0), CONDITION[:2], lines=1), codes, rule)


def test_tables_do_not_depend_on_their_batch() -> None:
    grid, prior = (3, 4), _prior((3, 4), 0)
    codes = torch.randint(0, K, (5, *grid), generator=torch.Generator().manual_seed(1))
    rule = LikelyCodes(0.3, grid, local=False)
    together = restore(prior, codes, rule)
    for i in range(5):
        alone = restore(lambda c, rows, since, i=i: prior(c, rows + i, since), codes[i : i + 1], rule)
        assert torch.equal(alone.codes[0], together.codes[i])
        assert alone.passes[0] == together.passes[i]
    assert torch.allclose(
        together.nll.flatten(1),
        negative_log_likelihood(prior(codes, torch.arange(5), torch.zeros(5))[0], codes.flatten(1)),
    )


def test_restored_codes_are_all_likely() -> None:
    grid, prior = (4, 4), _prior((4, 4), 3)
    codes = torch.randint(0, K, (6, *grid), generator=torch.Generator().manual_seed(2))
    found = restore(prior, codes, LikelyCodes(0.1, grid, local=False))
    nll = negative_log_likelihood(prior(found.codes, torch.arange(6), torch.zeros(6))[0], found.codes.flatten(1))
    assert float(nll.max()) <= -math.log(0.1) + 1e-9


def test_samples_follow_the_conditional() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = probabilities.log().view(1, K, 1).expand(20000, K, 1)
    uniform = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0))
    rule = SampledCodes(-1.0, uniform)
    assert rule.unlikely(torch.zeros(20000, 1)).all()
    drawn = rule.instead(logits[:, :, 0], torch.arange(20000), torch.zeros(20000, dtype=torch.long))
    shares = torch.bincount(drawn.flatten(), minlength=K) / 20000
    torch.testing.assert_close(shares, probabilities, atol=0.015, rtol=0)


def test_local_constraint_looks_at_the_lower_half() -> None:
    """Equation 5: the neighbours to the right, lower left, below and lower right."""
    for place, later in (((1, 1), [(1, 2), (2, 0), (2, 1), (2, 2)]), ((0, 2), [(1, 1), (1, 2)])):
        for other in [(i, j) for i in range(3) for j in range(3)]:
            values = torch.zeros(1, 3, 3)
            values[0][other] = 1
            assert (later_neighbours_max(values)[0][place] == 1) == (other in later)
