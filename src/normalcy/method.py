"""The contract of a method, in one page.

A method is an ``nn.Module`` with frozen settings that answers two questions: *how do I learn* (:meth:`Method.stages`)
and *how strange is this image* (:meth:`Method.score`). Everything else (the loop, devices, precision, preprocessing,
calibration, thresholds, files, drawing) is written once, elsewhere.

Three laws, each a check in ``tests/methods/test_contract.py``: larger is stranger; the score of an image does not depend
on its batch; scoring changes nothing. And one rule of storage: all that a method learns lives in its parameters and
buffers, so that saving, resuming and several processes need no code in the method.
"""

from __future__ import annotations

import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from normalcy import config
from normalcy.errors import DataError, SettingsError

Loss = Callable[[Tensor], Mapping[str, Tensor]]
"""A batch -> named terms; the term ``"loss"`` is minimised, the others are logged."""

MethodT = TypeVar("MethodT", bound="Method")


@dataclass(frozen=True)
class Scores:
    """What a method says of a batch. Larger is stranger, on any scale; all float32."""

    image: Tensor
    """(B,)"""
    map: Tensor | None = None
    """(B, *spatial): how strange each pixel or voxel is."""
    restored: Tensor | None = None
    """(B, C, *spatial): the nearest normal version of each image, in the value range of the input."""
    uncertainty: Tensor | None = None
    """(B, *spatial): how unsure the map is, for example the deviation over several restorations."""
    latent: Tensor | None = None
    """(B, d): where each image lies in the method's latent space, for looking at, not for scoring."""
    extra_maps: Mapping[str, Tensor] = field(default_factory=dict)
    """What else explains the score, by name (a word, as in file names): planes (B, *spatial) or images (B, C, *spatial) of any
    values and number of channels. The report shows them."""


@dataclass(frozen=True)
class Objective:
    """A loss and the parameters that it alone moves. Two objectives in a stage make a game."""

    loss: Loss
    parameters: Iterable[nn.Parameter]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    optimiser: str = "adam"
    """"adam", "adamw", "sgd" (momentum = betas[0]) or "rmsprop"."""
    schedule: Callable[[float], float] | None = None
    """Fraction of the stage done, in [0, 1) -> factor on ``lr``."""
    repeats: int = 1
    """Updates in each step (critic steps); each repeat after the first draws a new batch."""
    clip_norm: float | None = None
    clip_value: float | None = None
    name: str = ""
    """Prefix of its terms in the log where a stage has several objectives; the name of the loss unless given."""


@dataclass(frozen=True)
class EarlyStop:
    """End a stage when a loss on held-out normal images no longer falls; the best weights are kept.

    Where the stage derives its inputs, so does the loss here get them derived.
    """

    loss: Loss
    every: float = 1.0
    """Epochs between two looks, or steps where the stage is counted in steps; a user's --epochs does not change it."""
    patience: int = 3
    min_delta: float = 0.0
    after: float = 0.0
    """Fraction of the stage before which looks do not count towards the end: with a learning rate that falls later, a standstill
    says nothing yet."""


class Batches(Protocol):
    """The training images, in order, as often as one likes: ``for x in batches`` gives (B, C, *spatial) on the device."""

    count: int

    def __iter__(self) -> Iterator[Tensor]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Stage:
    """One part of the training: prepare (-> skip) -> inputs -> objectives until the length is reached -> conclude."""

    name: str
    objectives: Sequence[Objective] = ()
    """Parts of the method that none of them trains stay in evaluation mode."""
    epochs: float | None = None
    """Length in passes over the images, or ...

    Give ``epochs`` or ``steps`` when there are objectives, neither when there are none.
    """
    steps: int | None = None
    """... in steps; a step updates every objective (``repeats`` times)."""
    batch_size: int = 32
    """Images per step over all processes, unless the user asks for another number."""
    prepare: Callable[[Batches], None] | None = None
    """One gradient-free pass before the stage, in evaluation mode and 32 bits: memory banks, centres, seeding, statistics,
    classical estimators."""
    skip: Callable[[], bool] | None = None
    """Asked once, after ``prepare``: true ends the stage there, without a step, when nothing is left to improve. It may look at
    buffers alone, so that a resumed fit and all processes get the same answer."""
    derive: Callable[[Tensor], Tensor] | None = None
    """Train on this function of the images instead of the images (codes of a frozen network). Computed once, without
    gradients; once per batch where images are augmented. May depend only on parts that the stage does not train."""
    on_progress: Callable[[float], None] | None = None
    """Called before each step with the fraction of the stage done, in [0, 1): fade-ins, warm-ups, annealing."""
    early_stop: EarlyStop | None = None
    finalise: Callable[[Batches], None] | None = None
    """One gradient-free pass after the stage over normal images that were held out from training (over the training images
    where none are): thresholds and choices that training images would make too easy."""


class Method(nn.Module):
    """Base of all methods. A subclass gives ``name``, ``Settings``, ``stages`` and ``_score``.

    ``shape`` is (C, *spatial) of the images that it will see. Networks are built in ``__init__``, so that a saved method
    can be rebuilt from its settings and shape alone; what has no shape before training is a ``learned`` buffer.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    family: ClassVar[str] = "other"
    """A key of :data:`normalcy.methods.FAMILIES`."""
    reference: ClassVar[str] = ""
    """Full citation of the paper the method comes from: authors, title, venue and year, and a DOI or arXiv number where there is
    one; several are separated by a line break."""
    scores: ClassVar[tuple[str, ...]] = ()
    """Names that ``settings.score`` may take; one fitted model can be scored with any of them."""
    spatial_dims: ClassVar[tuple[int, ...]] = (2,)
    late_settings: ClassVar[Mapping[str, int]] = {}
    """Setting -> index of the first stage that reads it: fits that differ in these alone have the stages before it in common."""
    search: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Settings worth choosing by a few anomalies, and the values that ``normalcy select`` tries beside the default."""

    def __init__(self, settings: Any, shape: Sequence[int]) -> None:
        super().__init__()
        if len(shape) - 1 not in self.spatial_dims:
            known = " or ".join(f"{d}D" for d in self.spatial_dims)
            raise DataError(f"{self.name} works on {known} images, got images of shape {tuple(shape)} (C, *spatial).")
        # Types and choices, which nothing has checked where the settings were made in Python.
        self.settings = config.build(type(settings), config.to_dict(settings), self.name)
        self.shape = tuple(int(n) for n in shape)
        self.register_buffer("_fitted", torch.tensor(False))

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """How the method learns. Called once at the start of a fit, also of a resumed one."""

    @abstractmethod
    def _score(self, x: Tensor) -> Scores:
        """Scores of a batch (B, C, *spatial). Gradients are off (turn them on where needed), mode is evaluation."""

    def score(self, x: Tensor) -> Scores:
        """Scores of a batch (B, C, *spatial), float32, in the value range of the training images.

        Raises DataError for another shape and SettingsError before fit.
        """
        if not bool(self._fitted):
            raise SettingsError(f"{self.name} is not fitted yet: call fit() first.")
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise DataError(f"{self.name} expects images (B, {expected}), got {tuple(x.shape)}.")
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self._score(x.float())
        finally:
            self.train(was_training)

    def forward(self, loss: Loss, x: Tensor) -> Mapping[str, Tensor]:
        """A loss reached through the module, so that gradients of several processes are brought together."""
        return loss(x)

    @classmethod
    def summary(cls) -> str:
        """What the method is and what its score is: the first line of its module's docstring, else of the class's own."""
        text = inspect.getdoc(sys.modules.get(cls.__module__)) or cls.__doc__ or ""
        return text.strip().partition("\n")[0].strip()

    def load_pretrained(self) -> None:
        """Fetch weights that come from outside, once, before training; a saved method carries them with it."""
        for part in self.children():
            _load_pretrained(part)

    def with_score(self: MethodT, score: str) -> MethodT:
        """The same fitted method scored by another of its scores; weights are shared."""
        if score not in self.scores:
            known = ", ".join(self.scores) or "only one score"
            raise SettingsError(f"{self.name} has no score {score!r}: it offers {known}.")
        twin = object.__new__(type(self))
        twin.__dict__ = {**self.__dict__, "settings": replace(self.settings, score=score)}
        return twin

    def learned(self, *names: str) -> None:
        """Declare buffers whose shape is known only after ``prepare``; set them by plain assignment."""
        for name in names:
            self.register_buffer(name, torch.empty(0))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        for key, value in state_dict.items():
            owner_name, _, leaf = key.rpartition(".")
            owner = self.get_submodule(owner_name) if self._has_submodule(owner_name) else None
            if owner is not None and leaf in owner._buffers:
                current = owner._buffers[leaf]
                if current is not None and current.shape != value.shape and current.ndim == 1 and current.numel() == 0:
                    owner._buffers[leaf] = torch.empty_like(value, device=current.device)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _has_submodule(self, name: str) -> bool:
        try:
            self.get_submodule(name)
        except AttributeError:
            return False
        return True

    @property
    def device(self) -> torch.device:
        return cast(Tensor, self._fitted).device


def _load_pretrained(part: nn.Module) -> None:
    """What can fetch its weights does so, parts within it included; else each of its parts."""
    fetch = getattr(part, "load_pretrained", None)
    if callable(fetch):
        fetch()
    else:
        for inner in part.children():
            _load_pretrained(inner)
