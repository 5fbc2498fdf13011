"""The contract tests that every method passes, for methods of normalcy and of other packages alike::

    from normalcy.testing import check_method

    def test_contract():
        check_method(MyMethod, {"latent": 4, "epochs": 2})

A :class:`Trial` holds a method class with tiny settings and fits it once on smooth textures; each ``check_*`` looks at one
side of the contract (:mod:`normalcy.method`) and raises :class:`ContractError` with a sentence that says what is broken.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import pickle
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from normalcy import config
from normalcy.errors import DataError, NormalcyError, SettingsError
from normalcy.method import Method, Scores
from normalcy.methods import FAMILIES, METHODS
from normalcy.settings import COMMON
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

__all__ = ["ContractError", "check_method"]

RESERVED = frozenset({"method", "channels"}.union(*(config.fields_of(c) for c in COMMON.values())))
"""Words that a method's settings may not take: they mean something for every method."""


class ContractError(AssertionError):
    """A method breaks the contract."""


class Trial:
    """A method under test, with images that it can learn in seconds.

    ``words`` are settings of the method or of the training (``steps``, ``batch_size`` ...); ``shape`` is (C, *spatial).
    """

    def __init__(
        self, cls: type[Method], words: Mapping[str, Any] | None = None, shape: Sequence[int] = (1, 32, 32)
    ) -> None:
        self.cls, self.words, self.shape = cls, dict(words or {}), tuple(shape)
        parts = {"method": cls.Settings, "train": TrainSettings}
        given = {"device": "cpu", "precision": "32-true", "log_steps": 1000, **self.words}
        settings = config.assign_settings(given, parts, cls.name)
        self.settings: Any = settings["method"]
        self.train: TrainSettings = settings["train"]
        self.normal = smooth_textures(48, self.shape, seed=0)
        self.unseen = smooth_textures(12, self.shape, seed=1)
        self.defective, self.masks = with_defect(smooth_textures(12, self.shape, seed=2), seed=3)
        self.mixed = torch.cat([self.unseen[:2], self.defective[:2]])
        self._fitted: Method | None = None

    def build(self, seed: int = 0) -> Method:
        """The method before fit."""
        torch.manual_seed(seed)
        return self.cls(self.settings, self.shape)

    def fit(self, images: Tensor | None = None, steps: int | None = None) -> Method:
        """The method after a fit of its own."""
        method = self.build()
        train = self.train if steps is None else dataclasses.replace(self.train, epochs=None, steps=steps)
        fit(method, self.normal if images is None else images, train)
        return method

    def fitted(self) -> Method:
        """A copy of the method fitted once, so that no check can spoil another."""
        if self._fitted is None:
            self._fitted = self.fit()
        return copy.deepcopy(self._fitted)

    def variants(self) -> Iterator[tuple[str, Method]]:
        """A fitted copy for each score that the method offers: (label, method)."""
        fitted = self.fitted()
        if not fitted.scores:
            yield self.cls.name, fitted
        for score in fitted.scores:
            yield f"{self.cls.name} with score={score}", self.fitted().with_score(score)


def check_method(
    cls: type[Method],
    words: Mapping[str, Any] | None = None,
    shapes: Sequence[Sequence[int]] | None = None,
    finds_defect: bool = True,
) -> None:
    """Run all contract tests; raise ContractError at the first fault.

    ``shapes`` (C, *spatial) are by default 1 and 3 channels of 32x32, and a volume where the method takes volumes.
    ``finds_defect=False`` leaves out the planted defect for a method that can only see other kinds of anomalies.
    """
    for shape in shapes or default_shapes(cls):
        trial = Trial(cls, words, shape)
        for check in CHECKS:
            if finds_defect or check is not check_finds_defect:
                check(trial)


def default_shapes(cls: type[Method]) -> list[tuple[int, ...]]:
    """Shapes on which a method is tried."""
    flat: list[tuple[int, ...]] = [(1, 32, 32), (3, 32, 32)] if 2 in cls.spatial_dims else []
    return flat + ([(1, 16, 16, 16)] if 3 in cls.spatial_dims else [])


def smooth_textures(count: int, shape: Sequence[int], seed: int) -> Tensor:
    """Normal images (count, C, *spatial): a coarse random field around 0.45 and a little noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    channels, *spatial = shape
    coarse = torch.randn(count, channels, *[3] * len(spatial), generator=generator)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    field = F.interpolate(coarse, tuple(spatial), mode=mode, align_corners=True)
    return (0.45 + 0.05 * field + 0.01 * torch.randn(field.shape, generator=generator)).clamp(0, 1)


def with_defect(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A bright square (cube) in each image, and masks (B, *spatial) of where it is."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    for mask in masks:
        corner = [int(torch.randint(0, n - n // 4, (), generator=generator)) for n in mask.shape]
        mask[tuple(slice(c, c + n // 4) for c, n in zip(corner, mask.shape))] = True
    return images.masked_fill(masks.unsqueeze(1), 0.95), masks


# -- the checks ------------------------------------------------------------------------------------------------------


def check_settings(trial: Trial) -> None:
    """A frozen dataclass whose defaults run, whose words are its own, and that survives JSON."""
    cls, who = trial.cls, trial.cls.name
    _expect(dataclasses.is_dataclass(cls.Settings), f"{who}: Settings must be a dataclass, got {cls.Settings!r}.")
    frozen = cls.Settings.__dataclass_params__.frozen  # type: ignore[attr-defined]
    _expect(frozen, f"{who}: {cls.Settings.__name__} must be frozen: @dataclass(frozen=True).")
    words = config.fields_of(cls.Settings)
    for word, setting in words.items():
        has_default = (setting.default, setting.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
        _expect(has_default, f"{who}: the setting {word!r} has no default.")
        _expect(
            word not in RESERVED, f"{who}: the setting {word!r} means something for every method, choose another word."
        )
    for settings in (cls.Settings(), trial.settings):
        again: Any = config.build(cls.Settings, json.loads(json.dumps(config.to_dict(settings))), who)
        _expect(again == settings, f"{who}: settings change on the way through JSON: {settings} became {again}.")
    for word, values in cls.search.items():
        _expect(bool(values), f"{who}: search has no values for {word!r}.")
        for value in values:
            try:
                config.assign_settings({word: value}, {"method": cls.Settings, **COMMON}, who)
            except SettingsError as error:
                raise ContractError(f"{who}: search has an impossible value for {word!r}: {error}") from error
    if cls.scores or "score" in words:
        _expect("score" in words, f"{who} offers scores {cls.scores} but has no setting 'score'.")
        _expect(cls.Settings().score in cls.scores, f"{who}: the default score is not one of {cls.scores}.")
        for score in cls.scores:
            config.build(cls.Settings, {**config.to_dict(trial.settings), "score": score}, who)


def check_documented(trial: Trial) -> None:
    """The module (or class) says what the method is and where it comes from (a year, or the word "source"); its first line is a
    sentence; every setting has a meaning. Methods of normalcy also name their family and their reference."""
    cls, who = trial.cls, trial.cls.name
    text = f"{inspect.getdoc(sys.modules.get(cls.__module__)) or ''}\n{cls.__doc__ or ''}"
    _expect(len(text.split()) >= 8, f"{who}: the docstring of its module must say what the idea is.")
    sourced = re.search(r"\b(19|20)\d\d\b|source", text, re.IGNORECASE) is not None
    _expect(sourced, f"{who}: the docstring of its module must name the source (paper and year).")
    whole = cls.summary().endswith(".")
    _expect(
        whole, f"{who}: the first line of its docstring must be a sentence with a full stop, got {cls.summary()!r}."
    )
    try:
        meanings = config.field_docs(cls.Settings)
    except OSError:  # typed at a prompt: there is no source to read
        return
    silent = [word for word in config.fields_of(cls.Settings) if not meanings.get(word)]
    _expect(not silent, f"{who}: each setting needs a meaning, a text below it; none below {', '.join(silent)}.")
    if METHODS.get(who) == f"{cls.__module__}:{cls.__name__}":
        vague = [word for word, meaning in meanings.items() if meaning.startswith("Of ")]
        _expect(not vague, f"{who}: the meaning of a setting says what it is, not of what: {', '.join(vague)}.")
        _expect(cls.family in FAMILIES, f"{who}: family must be one of {', '.join(FAMILIES)}, got {cls.family!r}.")
        _expect(
            isinstance(cls.reference, str) and cls.reference.strip() != "",
            f"{who}: reference must be the full citation of its paper.",
        )


def check_stages(trial: Trial) -> None:
    """Each stage does something, has one length where it trains, and no parameter has two owners in a stage."""
    method, who = trial.build(), trial.cls.name
    stages = list(method.stages())
    known = {id(p) for p in method.parameters()}
    _expect(bool(stages), f"{who} has no stages.")
    _expect(len({s.name for s in stages}) == len(stages), f"{who}: two stages have the same name.")
    for stage in stages:
        where = f"{who}, stage {stage.name!r}"
        lengths = sum(length is not None for length in (stage.epochs, stage.steps))
        _expect(
            lengths == bool(stage.objectives), f"{where}: give epochs or steps with objectives, and only with them."
        )
        _expect(bool(stage.objectives) or stage.prepare is not None, f"{where}: neither prepares nor trains anything.")
        owned: set[int] = set()
        for objective in stage.objectives:
            own = {id(p) for p in objective.parameters}
            _expect(bool(own), f"{where}: an objective has no parameters (a generator used up by an earlier call?).")
            _expect(own <= known, f"{where}: an objective moves parameters that are not the method's.")
            _expect(not own & owned, f"{where}: two objectives move the same parameters.")
            owned |= own


def check_refuses(trial: Trial) -> None:
    """One sentence for a method that is not fitted, for images of another shape and for a number of axes it cannot take."""
    who, x = trial.cls.name, trial.unseen
    _refused(lambda: trial.build().score(x), SettingsError, f"{who} scores before it is fitted")
    method = trial.fitted()
    other_channels = torch.cat([x, x], dim=1)
    for wrong in (x[0], other_channels, x[..., :-1], x.unsqueeze(1)):
        sentence = f"{who}, built for {trial.shape}, scores images {tuple(wrong.shape)}"
        message = _refused(partial(method.score, wrong), DataError, sentence)
        _expect(who in message, f"{who}: its refusal does not say who refuses: {message}")
    dims = next(d for d in (1, 2, 3, 4) if d not in trial.cls.spatial_dims)
    shape = (1, *[16] * dims)
    _refused(lambda: trial.cls(trial.settings, shape), DataError, f"{who} can be built for {dims}D images")


def check_shapes(trial: Trial) -> None:
    """Scores of a batch and of one image have the documented shapes, are finite float32 and carry no gradient."""
    for who, method in trial.variants():
        for x in (trial.mixed, trial.mixed[:1], trial.mixed.double()):
            scores = method.score(x)
            count, spatial = len(x), trial.shape[1:]
            wanted = {
                "image": (count,),
                "map": (count, *spatial),
                "uncertainty": (count, *spatial),
                "restored": x.shape,
            }
            for name, value in _parts(scores).items():
                got = tuple(value.shape)
                if name == "latent":
                    _expect(len(got) == 2 and got[0] == count, f"{who}: latent must be ({count}, d), got {got}.")
                elif name.startswith("extra map "):
                    fits = got in ((count, *spatial), (count, *got[1:2], *spatial))
                    _expect(fits, f"{who}: {name} must be ({count}, [C,] {', '.join(map(str, spatial))}), got {got}.")
                else:
                    _expect(got == tuple(wanted[name]), f"{who}: {name} must be {tuple(wanted[name])}, got {got}.")
                _expect(value.dtype == torch.float32, f"{who}: {name} must be float32, got {value.dtype}.")
                _expect(not value.requires_grad, f"{who}: {name} still carries gradients.")
                _expect(bool(value.isfinite().all()), f"{who}: {name} is not finite everywhere.")


def check_batch_independence(trial: Trial) -> None:
    """An image alone, then in a batch, in another order, among other images, in another memory layout: the same scores."""
    for who, method in trial.variants():
        x = trial.mixed
        alone = [_parts(method.score(image.unsqueeze(0))) for image in x]  # first: a running statistic is empty now
        single = {name: torch.cat([parts[name] for parts in alone]) for name in alone[0]}
        batch = _parts(method.score(x))
        _same(batch, single, f"{who}: scores in a batch differ from those of each image alone")
        order = torch.arange(len(x)).flip(0)
        turned = {name: value[order] for name, value in _parts(method.score(x[order])).items()}
        _same(turned, single, f"{who}: scores depend on the order of the batch")
        among = _parts(method.score(torch.cat([trial.defective[3:5], x, torch.zeros_like(x[:1])])))
        among = {name: value[2:-1] for name, value in among.items()}
        _same(among, single, f"{who}: scores depend on the other images of the batch")
        strided = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        try:
            other_layout = _parts(method.score(strided))
        except RuntimeError as error:
            raise ContractError(f"{who} cannot score images of another memory layout: {error}") from error
        _same(other_layout, single, f"{who}: scores depend on the memory layout of the images")


def check_scoring_changes_nothing(trial: Trial) -> None:
    """Scoring leaves the method, the random numbers and the images as they were, and repeats itself."""
    for who, method in trial.variants():
        x = trial.mixed.clone()
        for training in (True, False):  # scoring must not depend on the mode, and must not change it
            method.train(training)
            before, first = _surroundings(method), _parts(method.score(x))
            for what, value in _surroundings(method).items():
                _expect(value == before[what], f"{who}: scoring changes the {what}.")
        _expect(torch.equal(x, trial.mixed), f"{who}: scoring changes the images that it is given.")
        method.score(trial.defective[3:])
        again = _parts(method.score(x))
        _same(again, first, f"{who}: the same images get other scores the second time")


def check_same_seed(trial: Trial) -> None:
    """Two fits with one seed give the same scores, whatever the global random generators would draw next."""
    scores = []
    for draws in (0, 5):
        method = trial.build()
        torch.rand(draws), np.random.random(draws), [random.random() for _ in range(draws)]  # noqa: NPY002
        fit(method, trial.normal, dataclasses.replace(trial.train, epochs=None, steps=2))
        scores.append(_parts(method.score(trial.mixed)))
    _same(scores[1], scores[0], f"{trial.cls.name}: two fits with one seed differ")


def check_save_load(trial: Trial) -> None:
    """The state dict, through safetensors, into a method built afresh: the same scores, under every name."""
    fitted, who = trial.fitted(), trial.cls.name
    state = {name: value.contiguous() for name, value in fitted.state_dict().items()}
    fresh = trial.build(seed=1)
    for name, made in fresh.state_dict().items():  # as the loading of a model folder demands
        stored = state[name]
        same = made.dtype == stored.dtype and made.shape in (stored.shape, (0,))
        before, after = (f"{tuple(x.shape)} {x.dtype}" for x in (made, stored))
        assert same, (
            f"{who}: the tensor {name} is {before} before the fit and {after} after it; a buffer whose shape is learned starts "
            "as an empty one of its type"
        )
    fresh.load_state_dict(load(save(state)))
    _same(
        _parts(fresh.score(trial.mixed)),
        _parts(fitted.score(trial.mixed)),
        f"{who}: scores change by saving and loading",
    )
    for score in fitted.scores:
        saved, loaded = fitted.with_score(score).score(trial.mixed), fresh.with_score(score).score(trial.mixed)
        _same(_parts(loaded), _parts(saved), f"{who}: scores change by saving and loading with score={score}")
    notes = list(fitted.notes())
    _expect(
        list(fresh.notes()) == notes and all(len(note.splitlines()) == 1 for note in notes),
        f"{who}: notes() must be single lines, the same after saving and loading, got {notes}.",
    )


def check_scores_by_name(trial: Trial) -> None:
    """A method built for a score, with the fitted weights, says the same as ``with_score``; unknown names are refused."""
    fitted, who = trial.fitted(), trial.cls.name
    _refused(lambda: fitted.with_score("no such score"), SettingsError, f"{who} offers a score that does not exist")
    for score in fitted.scores:
        asked = fitted.with_score(score)
        own = trial.cls(asked.settings, trial.shape)
        own.load_state_dict(fitted.state_dict())
        _same(
            _parts(asked.score(trial.mixed)),
            _parts(own.score(trial.mixed)),
            f"{who}: with_score({score!r}) is another score",
        )
        _expect(fitted.settings == trial.settings, f"{who}: with_score changes the method that it is asked of.")


def check_processes(trial: Trial) -> None:
    """An unfitted method can be sent to other processes."""
    try:
        pickle.dump(trial.build(), io.BytesIO())
    except Exception as error:
        raise ContractError(f"{trial.cls.name} cannot be sent to another process ({error}).") from error


def check_finds_defect(trial: Trial) -> None:
    """Higher scores are more anomalous: a bright square is above normal images (AUROC > 0.8), in the map above what is around
    it."""
    method, who = trial.fitted(), trial.cls.name
    normal, anomalous = method.score(trial.unseen), method.score(trial.defective)
    above = (anomalous.image[:, None] > normal.image).float() + 0.5 * (anomalous.image[:, None] == normal.image).float()
    auroc = float(above.mean())
    _expect(auroc > 0.8, f"{who}: AUROC of a planted bright square is {auroc:.2f}, expected above 0.8.")
    if anomalous.map is not None:
        inside = torch.stack([m[mask].mean() for m, mask in zip(anomalous.map, trial.masks)])
        outside = torch.stack([m[~mask].mean() for m, mask in zip(anomalous.map, trial.masks)])
        fraction = float((inside > outside).float().mean())
        _expect(
            fraction > 0.8, f"{who}: the map is higher inside a planted square in {fraction:.0%} of the images only."
        )


def check_oblong_images(trial: Trial) -> None:
    """Images with unequal sides: refused in a sentence, or scored with a map of their shape."""
    shape = (*trial.shape[:-1], 3 * trial.shape[-1] // 2)
    try:
        check_shapes(Trial(trial.cls, {**trial.words, "steps": 2, "epochs": None}, shape))
    except NormalcyError:
        return


def check_poor_data(trial: Trial) -> None:
    """Two images, or images all alike: the fit refuses in a sentence, or its scores are finite."""
    for what, images in (
        ("two images", trial.normal[:2]),
        ("images all alike", torch.full_like(trial.normal[:8], 0.5)),
    ):
        try:
            scores = trial.fit(images, steps=2).score(trial.mixed)
        except NormalcyError:
            continue
        except Exception as error:
            raise ContractError(f"{trial.cls.name} fitted on {what} raises {type(error).__name__}: {error}") from error
        for name, value in _parts(scores).items():
            _expect(bool(value.isfinite().all()), f"{trial.cls.name} fitted on {what}: {name} is not finite.")


def check_threads(trial: Trial) -> None:
    """Eight threads that score different images with one method get the scores of one thread, and change nothing."""
    for who, method in trial.variants():
        images = torch.cat([trial.unseen, trial.defective])
        batches = [
            images[first : first + 3] for first in range(0, 3 * 8, 3)
        ]  # one for each thread: a mixed-up result is seen
        alone = [_parts(method.score(x)) for x in batches]
        for training in (True, False):
            method.train(training)
            before = _surroundings(method)
            for got, wanted in zip(_in_threads(method, batches, who), alone):
                _same(got, wanted, f"{who}: scores of eight threads differ from those of one")
            for what, value in _surroundings(method).items():
                _expect(value == before[what], f"{who}: scoring in threads changes the {what}.")


def check_inference_mode(trial: Trial) -> None:
    """In ``torch.inference_mode`` a method scores the same, also where its score needs gradients."""
    for who, method in trial.variants():
        wanted = _parts(method.score(trial.mixed))
        with torch.inference_mode():
            try:
                got = _parts(method.score(trial.mixed.clone()))
            except RuntimeError as error:
                raise ContractError(f"{who} cannot score in torch.inference_mode: {error}") from error
        _same(got, wanted, f"{who}: scores differ in torch.inference_mode")


def check_global_generators(trial: Trial) -> None:
    """``fit`` and ``score`` leave the global random generators, and torch's number of threads, as they were."""
    who, method = trial.cls.name, trial.build()
    before, threads = _generators(), torch.get_num_threads()
    try:
        fit(method, trial.normal, dataclasses.replace(trial.train, epochs=None, steps=2))
        method.score(trial.mixed)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
    for what, value in _generators().items():
        _expect(value == before[what], f"{who}: fit or score changes the {what}.")
    _expect(used == threads, f"{who}: fit or score sets torch's number of threads to {used}, it was {threads}.")


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_settings,
    check_documented,
    check_stages,
    check_processes,
    check_refuses,
    check_shapes,
    check_batch_independence,
    check_scoring_changes_nothing,
    check_save_load,
    check_scores_by_name,
    check_finds_defect,
    check_same_seed,
    check_oblong_images,
    check_poor_data,
    check_threads,
    check_inference_mode,
    check_global_generators,
)


# -- private ---------------------------------------------------------------------------------------------------------


def _expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise ContractError(sentence)


def _refused(action: Callable[[], object], wanted: type[Exception], sentence: str) -> str:
    """The message of the error that ``action`` must raise."""
    try:
        action()
    except wanted as error:
        return str(error)
    except Exception as error:
        raise ContractError(f"{sentence}: expected {wanted.__name__}, got {type(error).__name__}: {error}") from error
    raise ContractError(f"{sentence}: expected {wanted.__name__}, got an answer.")


def _parts(scores: Scores) -> dict[str, Tensor]:
    parts = {name: value for name, value in vars(scores).items() if isinstance(value, Tensor)}
    return parts | {f"extra map {name}": value for name, value in scores.extra_maps.items()}


def _same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], sentence: str) -> None:
    """Equal up to rounding: 1e-5 of the largest value and 1e-3 of the range, for each part."""
    _expect(got.keys() == wanted.keys(), f"{sentence}: {sorted(got)} against {sorted(wanted)}.")
    for name, value in wanted.items():
        tolerance = 1e-5 * float(value.abs().max()) + 1e-3 * float(value.max() - value.min()) + 1e-12
        difference = float((got[name] - value).abs().max())
        _expect(difference <= tolerance, f"{sentence} ({name} by {difference:.3g}, allowed {tolerance:.3g}).")


def _in_threads(method: Method, batches: Sequence[Tensor], who: str) -> list[dict[str, Tensor]]:
    """Scores of each batch, each in a thread of its own, all at the same time."""
    start = threading.Barrier(len(batches))

    def score(x: Tensor) -> dict[str, Tensor]:
        start.wait()
        return _parts(method.score(x))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often
    try:
        with ThreadPoolExecutor(len(batches)) as pool:
            return list(pool.map(score, batches))
    except Exception as error:
        raise ContractError(f"{who} cannot score in several threads: {type(error).__name__}: {error}") from error
    finally:
        sys.setswitchinterval(interval)


def _surroundings(method: Method) -> dict[str, object]:
    """All that scoring could change, in a form to compare."""
    return {
        "weights and buffers": {
            k: (v.dtype, tuple(v.shape), v.cpu().numpy().tobytes()) for k, v in method.state_dict().items()
        },
        "training mode": [module.training for module in method.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in method.parameters()],
        **_generators(),
    }


def _generators() -> dict[str, object]:
    """The states of the global random generators."""
    found: dict[str, object] = {
        "random numbers of torch": torch.get_rng_state().numpy().tobytes(),
        "random numbers of NumPy": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "random numbers of Python": random.getstate(),
    }
    if torch.cuda.is_available():
        found["random numbers of CUDA"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return found
