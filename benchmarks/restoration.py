"""Restoring 32x32 codes: passes through the prior and seconds, against the position-by-position scan.

    python benchmarks/restoration.py          (about 3 minutes in one thread)

Wanted: k + 1 passes for k changed codes; at least 15 times as fast as the scan for one copy of an image, 12 times for 15 copies
in one batch, each with its own random numbers. A PixelSNAIL with random weights, width 64, 2 blocks, 128 codes; codes are drawn
again if their likelihood is in the lowest 6 %, after which about 6 % differ. For one copy the complete scan is run and its codes
are compared; for 15 copies its first passes are timed (all take the same time). "whole passes": without cached activations. Pass
equivalents are the number of positions whose logits were computed, as a multiple of the grid; the first pass, which is the same
for all copies, is counted for each although it is computed once. "masked": the bidirectional prior of the same width and
blocks. It hides the 6 % least likely codes with the neighbours of each, and fills them in in 3 passes, after which about 40 %
differ; its pseudo-likelihoods of all codes, which decide, take 8 more passes and are included. Writes results/restoration.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normalcy.nets.masked import MaskedPrior, likelihoods, refill
from normalcy.nets.pixelsnail import Memory, PixelSNAIL
from normalcy.nets.restore import SampledCodes, negative_log_likelihood, restore, scan, whole
from normalcy.provenance import write_record

GRID, CODES, WIDTH, BLOCKS, SHARE, SEED, TIMED = (32, 32), 128, 64, 2, 0.06, 0, 12
RESULT = Path(__file__).parent / "results" / "restoration.json"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and processor seconds, which other work on the machine does not affect."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


@torch.no_grad()
def measure(model: PixelSNAIL, codes: Tensor, copies: int) -> dict[str, Any]:
    positions = GRID[0] * GRID[1]
    tables = codes.repeat(copies, 1, 1)
    uniform = torch.rand(copies, positions, generator=torch.Generator().manual_seed(SEED))
    nll = negative_log_likelihood(model(codes).flatten(2), codes.flatten(1))
    rule = SampledCodes(float(torch.quantile(nll, 1 - SHARE)), uniform)
    prior = whole(lambda table, rows: model(table))
    if copies == 1:
        plain, scan_seconds = timed(lambda: scan(prior, tables, rule))
    else:
        plain, scan_seconds = timed(lambda: [model(tables) for _ in range(TIMED)])
        scan_seconds *= positions / TIMED
    passes, pass_seconds = timed(lambda: restore(prior, tables, rule))
    remembered, memory_seconds = timed(lambda: restore(Memory(model, copies=copies), tables, rule))
    assert torch.equal(passes.codes, remembered.codes)
    if copies == 1:
        assert torch.equal(plain, remembered.codes)
    changed = remembered.changed.flatten(1).sum(1)
    counted = remembered.passes - 1 + remembered.changed.flatten(1)[:, -1].long()
    return {
        "copies": copies,
        "share_of_codes_changed": round(float(changed.float().mean()) / positions, 4),
        "changed_codes": round(float(changed.float().mean()), 1),
        "passes_are_k_plus_1": bool((counted == changed).all()),
        "pass_equivalents": {
            "scan": positions,
            "whole_passes": round(float(passes.work.mean()), 1),
            "with_memory": round(float(remembered.work.mean()), 2),
        },
        "seconds_an_image": {
            "scan": round(scan_seconds, 2),
            "whole_passes": round(pass_seconds, 2),
            "with_memory": round(memory_seconds, 3),
        },
        "times_faster": {
            "whole_passes": round(scan_seconds / pass_seconds, 1),
            "with_memory": round(scan_seconds / memory_seconds, 1),
        },
    }


@torch.no_grad()
def measure_masked(model: MaskedPrior, codes: Tensor, copies: int, scan_seconds: float) -> dict[str, Any]:
    """As :func:`measure`; the likelihoods, which are the same for all copies, are computed once."""
    uniform = torch.rand(copies, codes[0].numel(), generator=torch.Generator().manual_seed(SEED))

    def work() -> Any:
        nll, _ = likelihoods(model, codes)
        limit = float(torch.quantile(nll, 1 - SHARE))
        every = codes.repeat(copies, 1, 1), nll.repeat(copies, 1, 1)
        return refill(model, *every, limit, uniform=uniform)

    work()
    result, seconds = timed(work)
    return {
        "copies": copies,
        "share_of_codes_changed": round(float(result.changed.float().mean()), 4),
        "passes": int(result.passes.max()),
        "seconds_an_image": round(seconds, 3),
        "times_faster_than_the_scan": round(scan_seconds / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    torch.manual_seed(SEED)
    model = PixelSNAIL(GRID, CODES, WIDTH, BLOCKS).eval()
    codes = torch.randint(0, CODES, (1, *GRID))
    model(codes)
    found = [measure(model, codes, copies) for copies in (1, 15)]
    masked = MaskedPrior(GRID, CODES, WIDTH, BLOCKS).eval()
    two_sided = [measure_masked(masked, codes, row["copies"], row["seconds_an_image"]["scan"]) for row in found]
    for row in (*found, *two_sided):
        print(row)
    write_record(
        RESULT,
        {
            "benchmark": "restoration of 32x32 codes; share_of_codes_changed in each row",
            "wanted": {"times_faster": {"1 copy": 15, "15 copies": 12}, "passes": "k + 1"},
            "prior": {"codes": CODES, "width": WIDTH, "blocks": BLOCKS},
            "seed": SEED,
            "threads": options.threads,
            "load_at_start": round(load, 2),
            "found": found,
            "masked": two_sided,
        },
    )


if __name__ == "__main__":
    main()
