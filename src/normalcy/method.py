"""The contract of a method, on one page.

A method is an ``nn.Module`` with frozen settings that defines how it is trained (:meth:`Method.stages`) and how anomalous an
image is (:meth:`Method.score`). Everything else (the loop, devices, precision, preprocessing, calibration, thresholds, files,
plots) is written once, elsewhere.

Three laws, each checked by ``tests/methods/test_contract.py``: higher scores are more anomalous; the score of an image does
not depend on its batch; scoring changes nothing, in any number of threads. And one rule of storage: all that a method learns
is in its parameters and buffers, so that saving, resuming and several processes need no code in the method.
"""

from __future__ import annotations

import copy
import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from normalcy import config
from normalcy.arrays import EXTRA_MAP, Array, Float32, Reduce
from normalcy.errors import DataError, SettingsError

Loss = Callable[[Tensor], Mapping[str, Tensor]]
"""A batch -> named terms; the term ``"loss"`` is minimised, the others are logged."""

MethodT = TypeVar("MethodT", bound="Method")


@dataclass(frozen=True)
class Scores:
    """A method's output for a batch, all float32. Higher scores are more anomalous; the scale is arbitrary."""

    image: Tensor
    """(B,)"""
    map: Tensor | None = None
    """(B, *spatial): how anomalous each pixel or voxel is."""
    restored: Tensor | None = None
    """(B, C, *spatial): the nearest normal version of each image, in the value range of the input."""
    uncertainty: Tensor | None = None
    """(B, *spatial): uncertainty of the map, for example the standard deviation over several restorations."""
    latent: Tensor | None = None
    """(B, d): latent code of each image, for visualisation only."""
    extra_maps: Mapping[str, Tensor] = field(default_factory=dict)
    """Further maps that explain the score, by name (one word, used in file names): (B, *spatial) or (B, C, *spatial) of any
    values and number of channels. The report shows them."""

    def by_name(self) -> dict[str, Tensor]:
        """The parts that there are: ``score``, ``map``, ``restored``, ``uncertainty``, ``latent``, ``extra_maps.NAME``."""
        named = {"score": self.image, "map": self.map, "restored": self.restored}
        named |= {"uncertainty": self.uncertainty, "latent": self.latent}
        named |= {EXTRA_MAP + name: part for name, part in self.extra_maps.items()}
        return {name: part for name, part in named.items() if part is not None}


@dataclass(frozen=True)
class Objective:
    """A loss and the parameters that it alone updates. Two objectives in a stage make a game."""

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
    """Largest L2 norm of the gradient over all ``parameters``."""
    clip_value: float | None = None
    """Largest absolute value of a gradient's element."""
    name: str = ""
    """Prefix of its terms in the log where a stage has several objectives; the name of the loss unless given."""


@dataclass(frozen=True)
class EarlyStop:
    """End a stage when a loss on held-out normal images no longer falls; the best weights are kept.

    Where the stage derives its inputs, this loss gets derived inputs, too.
    """

    loss: Loss
    every: float = 1.0
    """Epochs between two evaluations, or steps where the stage is counted in steps; a user's --epochs does not change it."""
    patience: int = 3
    """Evaluations without an improvement that end the stage."""
    min_delta: float = 0.0
    """Smallest improvement of the loss that counts as one."""
    after: float = 0.0
    """Fraction of the stage before which evaluations do not count towards ``patience``, as a plateau before the learning rate
    falls is no reason to stop."""


class Batches(Protocol):
    """Re-iterable over the training images, in a fixed order: ``for x in batches`` gives (B, C, *spatial) on the device."""

    count: int
    """Number of images."""

    def __iter__(self) -> Iterator[Tensor]: ...
    def __len__(self) -> int: ...
    def map(self, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """``function`` of each batch, in order: of several processes each computes a part, and all get all.

        For what costs more than sending its result, such as features of a network. It may draw no random numbers and keep
        nothing from one batch to the next.
        """
        ...

    def once(self, work: Callable[[], Tensor]) -> Tensor:
        """The result of ``work``, computed by the first process alone; it may draw no random numbers."""
        ...


@dataclass(frozen=True)
class Stage:
    """One part of the training: prepare (-> skip) -> derive -> objectives until the length is reached -> finalise."""

    name: str
    objectives: Sequence[Objective] = ()
    """Parts of the method that none of them trains stay in evaluation mode."""
    epochs: float | None = None
    """Length in passes over the images. Give ``epochs`` or ``steps`` where there are objectives, neither where there are none."""
    steps: int | None = None
    """Length in steps; a step updates every objective (``repeats`` times)."""
    batch_size: int = 32
    """Images per step over all processes, unless the user sets another number."""
    prepare: Callable[[Batches], None] | None = None
    """One gradient-free pass before the stage, in evaluation mode and 32 bits: memory banks, centres, seeding, statistics,
    classical estimators."""
    skip: Callable[[], bool] | None = None
    """Asked once, after ``prepare``: true ends the stage there, without a step, as nothing is left to improve. It may depend on
    buffers only, so that a resumed fit and all processes get the same answer."""
    derive: Callable[[Tensor], Tensor] | None = None
    """Train on this function of the images instead of the images (codes of a frozen network). Computed once, without
    gradients; once per batch where images are augmented. May depend only on parts that the stage does not train."""
    on_progress: Callable[[float], None] | None = None
    """Called before each step with the fraction of the stage done, in [0, 1): fade-ins, warm-ups, annealing."""
    early_stop: EarlyStop | None = None
    finalise: Callable[[Batches], None] | None = None
    """One gradient-free pass after the stage over normal images that were held out from training (over the training images
    where none are): for example thresholds that would be biased if set on training images."""


class Method(nn.Module):
    """Base of all methods. A subclass defines ``name``, ``Settings``, ``stages`` and ``_score``.

    ``shape`` is (C, *spatial) of its images. Networks are built in ``__init__``, so that a saved method can be rebuilt from its
    settings and shape alone; what has no shape before training is a ``learned`` buffer.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    family: ClassVar[str] = "other"
    """A key of :data:`normalcy.methods.FAMILIES`."""
    reference: ClassVar[str] = ""
    """Full citation of the paper the method comes from: authors, title, venue and year, and a DOI or arXiv number where there is
    one; several are separated by a line break."""
    scores: ClassVar[tuple[str, ...]] = ()
    """Values that ``settings.score`` may take; one fitted model can be scored with any of them."""
    map_scores: ClassVar[tuple[str, ...]] = ()
    """Scores ("" where there is only one) that reduce the map by the setting ``reduce``, see :attr:`reduction`."""
    spatial_dims: ClassVar[tuple[int, ...]] = (2,)
    late_settings: ClassVar[Mapping[str, int]] = {}
    """Setting -> index of the first stage that reads it: fits that differ in these alone have the stages before it in common."""
    not_exportable: ClassVar[Mapping[str, str]] = {}
    """Scores ("" where there is only one) that :mod:`normalcy.export` cannot write as a graph -> reason, and what to take
    instead."""
    search: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Settings worth choosing with a few anomalies, and the values that ``normalcy select`` tries besides the default."""

    length_setting: ClassVar[str] = "steps"
    """Setting that holds the length, in steps, of the stage that stops early; ``normalcy select`` gives it the best number."""

    sparse_weight: ClassVar[str] = ""
    """For a method that separates a sparse part (extra map "sparse") from each image: the setting that weighs its penalty."""
    audit_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings of ``normalcy audit`` where they are not given."""

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
        """How the method is trained. Called once at the start of a fit, also of a resumed one."""

    @abstractmethod
    def _score(self, x: Tensor) -> Scores:
        """Scores of a batch (B, C, *spatial), float32. Gradients are off (``torch.enable_grad`` where needed), the mode is
        evaluation.

        Other threads may be in here with the same module: results of one call are not to be kept in its attributes.
        """

    def score(self, x: Tensor) -> Scores:
        """Scores of a batch (B, C, *spatial) in the value range of the training images; float32 throughout.

        Any number of threads may score with one method, also in ``torch.inference_mode``; nothing is changed by it, the mode
        and the random generators included. Raises DataError for another shape and SettingsError before fit.
        """
        if not bool(self._fitted):
            raise SettingsError(f"{self.name} is not fitted yet: call fit() first.")
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise DataError(f"{self.name} expects images (B, {expected}), got {tuple(x.shape)}.")
        # Other threads may score with this module now: its mode is not switched. In evaluation mode since fit() or load(), it
        # scores itself; where somebody switched a part to training mode, a copy of the module tree does, with the same weights.
        method = evaluation_copy(self) if any(part.training for part in self.modules()) else self
        # Some scores need gradients, which inference mode forbids for all tensors that are made in it, ``x`` included.
        with torch.inference_mode(False), torch.no_grad():
            return method._score((x.clone() if x.is_inference() else x).float())

    def score_arrays(self, x: Float32) -> dict[str, Array]:
        """:meth:`score` of an array: ``score`` (B,) and, where there are such, the other parts by their names."""
        images = torch.from_numpy(x).to(self.device)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return {name: part.float().cpu().numpy() for name, part in self.score(images).by_name().items()}

    @property
    def on_processor(self) -> bool:
        """Whether it scores on the CPU."""
        return self.device.type == "cpu"

    @property
    def reduction(self) -> Reduce | None:
        """How the image score follows from the map; None where it is no function of the map. In a region of interest it is taken
        over the pixels there alone."""
        if (self.settings.score if self.scores else "") not in self.map_scores:
            return None
        reduce: Reduce = self.settings.reduce
        return reduce

    def forward(self, loss: Loss, x: Tensor) -> Mapping[str, Tensor]:
        """``loss(x)``, called through the module so that DDP averages its gradients over the processes."""
        return loss(x)

    @classmethod
    def summary(cls) -> str:
        """What the method is and what its score is: the first line of its module's docstring, else of the class's own."""
        text = inspect.getdoc(sys.modules.get(cls.__module__)) or cls.__doc__ or ""
        return text.strip().partition("\n")[0].strip()

    def load_pretrained(self) -> None:
        """Fetch weights that come from outside, once, before training; a saved method contains them."""
        for part in self.children():
            _load_pretrained(part)

    def with_score(self: MethodT, score: str) -> MethodT:
        """The same fitted method scored by another of its scores; weights are shared."""
        if score not in self.scores:
            known = ", ".join(self.scores) or "only one score"
            raise SettingsError(f"{self.name} has no score {score!r}: it offers {known}.")
        twin = copy.copy(self)  # shallow: parameters, buffers and parts are those of self
        twin.settings = replace(self.settings, score=score)
        return twin

    def mark_fitted(self, fitted: bool) -> None:
        """Set by the training loop: only a fitted method scores. Saved with the weights."""
        cast("Tensor", self._fitted).fill_(fitted)

    @classmethod
    def separates(cls, settings: Mapping[str, Any]) -> bool:
        """Whether, with these settings, each image has a sparse part of its own."""
        return bool(cls.sparse_weight)

    def convergence(self) -> Mapping[str, Any]:
        """Of a method with a sparse part: ``rounds`` of the fit, and the relative residual (``constraint``) after the last."""
        return {}

    def notes(self) -> Sequence[str]:
        """Of a fitted method: what it chose from normal images, such as a map or a limit, a line of Markdown for each choice. The
        model's ``CARD.md`` lists them."""
        return ()

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
        return cast("Tensor", self._fitted).device


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def evaluation_copy(module: ModuleT) -> ModuleT:
    """``module`` in evaluation mode: all modules are copied, their parameters and buffers are not. ``module`` stays as it is."""
    copies: dict[int, nn.Module] = {}  # a part that stands in two places is one part in the copy, too

    def copied(part: nn.Module) -> nn.Module:
        if id(part) not in copies:
            twin = copies[id(part)] = copy.copy(part)
            # Dictionaries of its own, so that what a part assigns while it scores stays in the copy.
            twin._parameters, twin._buffers = dict(part._parameters), dict(part._buffers)
            twin._modules = {name: inner if inner is None else copied(inner) for name, inner in part._modules.items()}
        return copies[id(part)]

    return cast("ModuleT", copied(module).eval())


def _load_pretrained(part: nn.Module) -> None:
    """Call ``load_pretrained`` of a part that has it, which includes the parts inside it; else of each of its parts."""
    fetch = getattr(part, "load_pretrained", None)
    if callable(fetch):
        fetch()
    else:
        for inner in part.children():
            _load_pretrained(inner)
