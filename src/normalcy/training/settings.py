"""How to train: lengths, device, precision; and what a fit cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from normalcy.errors import SettingsError


@dataclass(frozen=True)
class TrainSettings:
    """How to train, for any method; lengths and batch sizes are the method's own unless given here."""

    epochs: float | None = None
    """Total training length in epochs, distributed over the stages in their default proportions. none: the method's own."""
    steps: int | None = None
    """Total training length in steps, instead of epochs."""
    batch_size: int | None = None
    """Images per step, over all processes. none: the method's own."""
    seed: int = 0
    """Seed of splits, initial weights, batches and noise."""
    device: str = "auto"
    """Device to train on: auto, cpu, cuda or mps; auto is the first available of cuda, mps and cpu."""
    devices: int = 1
    """Number of training processes, each with a GPU or its part of the cores; each batch is divided among them."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Numerical precision of training; auto: bf16-mixed if the device computes in bf16, else 32-true."""
    channels_last: bool = True
    """Channels-last memory layout of 2D images: faster on most devices, the same results up to rounding."""
    engine: Literal["auto", "torch"] = "auto"
    """What computes features of frozen backbones on the CPU: torch, or auto, which is onnxruntime where it is installed, from 200
    images on; the features agree to 1e-4."""
    compile: bool = False
    """Compile the losses with torch.compile: slow start, faster steps."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, instead of checkpoint_seconds."""
    log_steps: int = 50
    """Steps between two records of the training log."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise SettingsError("Give epochs or steps, not both.")
        for word in ("epochs", "steps", "batch_size", "devices", "log_steps", "checkpoint_steps"):
            value = getattr(self, word)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{word} must be positive, got {value}.")
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, got {self.seed}.")
        if self.engine not in ("auto", "torch"):
            raise SettingsError(f"engine must be auto or torch, got {self.engine!r}.")
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            raise SettingsError(f"device must be auto, cpu, cuda or mps, got {self.device!r}.")
        if self.precision not in ("auto", "32-true", "bf16-mixed", "16-mixed"):
            raise SettingsError(f"precision must be auto, 32-true, bf16-mixed or 16-mixed, got {self.precision!r}.")


@dataclass(frozen=True)
class FitSummary:
    """What a fit cost, over all its interruptions."""

    seconds: float
    steps: int
    precision: str
    device: str


def best_precision(accelerator: str) -> str:
    """ "bf16-mixed" where the processor computes in bf16, else "32-true"."""
    import torch  # here, as the settings alone must not import it

    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if accelerator == "cpu" and has_bf16() else "32-true"


def accelerator_of(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        raise SettingsError(f"This machine has no {device} device: use --device cpu or auto.")
    return device


def precision_of(settings: TrainSettings, accelerator: str) -> Any:
    return best_precision(accelerator) if settings.precision == "auto" else settings.precision
