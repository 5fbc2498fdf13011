"""The global random generators of torch, NumPy and Python: seeded by place while a method trains, the caller's afterwards."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*place: int) -> int:
    """A seed below 2^63 that depends on the numbers in ``place`` alone: (seed of the fit, stage, step, process) ..."""
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8], "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of ``device``, NumPy's and Python's.

    ``torch.manual_seed`` would seed those of all devices, also for a fit on the CPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def caller_generators_kept(device: torch.device) -> Iterator[None]:
    """Give the caller back the state of all generators that :func:`seed_generators` seeds, also after an error."""
    cpu, numpy, python = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        if mps is not None:
            torch.mps.set_rng_state(mps)
