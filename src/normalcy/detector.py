"""What a user holds: preprocessing + method + calibration, over arrays, paths and data sets."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch

import normalcy
from normalcy import artefact, config
from normalcy.calibrate import Calibration, Decision, calibrate, decide
from normalcy.data.augment import Augment
from normalcy.data.dataset import DataSet, Item, as_dataset
from normalcy.data.decode import DiskImages, Failure, decode
from normalcy.data.diffusion import check_scheme
from normalcy.data.pieces import Cutting, Slices, View
from normalcy.data.preprocess import Preprocess
from normalcy.data.splits import carve_out, train_test
from normalcy.data.tiling import Window
from normalcy.data.volumes import Space
from normalcy.errors import DataError, ModelFileError, NormalcyError, SettingsError
from normalcy.method import Method, Scores
from normalcy.methods import get
from normalcy.nets.filters import Reduce
from normalcy.provenance import versions
from normalcy.results import NOTICE
from normalcy.train import FitSummary, Log, Record, TrainSettings, fit

Array = npt.NDArray[Any]
T = TypeVar("T")
TRAIN_LOG = "train.jsonl"
AT_ONCE = 2**19
"""Pixels that a CPU scores at once, 8 images of 256x256: activations of larger batches are new memory in each layer."""


@dataclass(frozen=True)
class InputSettings:
    """How images become what a method sees."""

    size: int | None = None
    """Side of the square (cube) that a method sees. None: 256 (64 of volumes) where images differ in size or are larger,
    unless a resize, tile or crop is asked for; else their own size."""
    preprocess: tuple[str, ...] = ()
    """Named steps, see normalcy.data.preprocess."""
    augment: tuple[str, ...] = ()
    """Random transforms in training, see normalcy.data.augment."""
    tile: int | None = None
    """Cut images into overlapping tiles of this side instead of resizing them; the strangest tile is the image's score."""
    tile_overlap: float = 0.25
    """Fraction of a side that neighbouring tiles share in scoring."""
    tile_window: Window = "hann"
    """Weights with which the maps of overlapping tiles are blended: "hann" or "gaussian"."""
    slices: Slices = "none"
    """See volumes as slices along an axis of the patient: "z" (axial), "y" (coronal), "x" (sagittal) or "xyz", all three, whose
    maps are averaged. size is then the side of a slice."""
    slice_range: tuple[float, float] = (0.0, 1.0)
    """Part of the axis that slices are taken from: 0.2,0.9 leaves out the lowest fifth and the highest tenth."""
    slice_body: float = 0.0
    """Leave out slices of which less than this share is body (above Otsu's threshold of the volume)."""
    piece_score: Reduce = "max"
    """The score of an image that is cut in tiles or slices, from theirs: "max", "mean" or a quantile in [0, 1]."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 8:
            raise SettingsError(f"size must be at least 8 pixels, got {self.size}.")
        if self.tile is not None and self.tile < 8:
            raise SettingsError(f"tile must be at least 8 pixels, got {self.tile}.")
        if not 0 <= self.tile_overlap < 1:
            raise SettingsError(f"tile_overlap must be in [0, 1), got {self.tile_overlap}.")
        if self.slices != "none" and self.tile is not None:
            raise SettingsError(f"slices={self.slices} and tile={self.tile} exclude each other: give one of them.")
        if not 0 <= self.slice_range[0] < self.slice_range[1] <= 1 or not 0 <= self.slice_body < 1:
            raise SettingsError(
                "slice_range must be two rising numbers in [0, 1] and slice_body in [0, 1), "
                f"got {self.slice_range} and {self.slice_body}."
            )
        if not isinstance(self.piece_score, str) and not 0 <= self.piece_score <= 1:
            raise SettingsError(f'piece_score must be "max", "mean" or a quantile in [0, 1], got {self.piece_score}.')


@dataclass(frozen=True)
class DecisionSettings:
    """How scores become decisions."""

    calibration: float = 0.1
    """Fraction of the normal training images held out for p-values and thresholds (at least 20 images); 0: none."""
    false_alarms: float = 0.05
    """Promised probability that a normal image is flagged, and share of a normal image's pixels."""

    def __post_init__(self) -> None:
        if not 0 <= self.calibration < 1:
            raise SettingsError(f"calibration must be in [0, 1), got {self.calibration}.")
        if not 0 < self.false_alarms < 1:
            raise SettingsError(f"false_alarms must be between 0 and 1, got {self.false_alarms}.")


@dataclass(frozen=True)
class Result:
    """What a detector says of one image."""

    item: Item
    score: float
    """Larger is stranger."""
    p_value: float | None
    """Chance of a score this large for a normal image; None without calibration."""
    flagged: bool | None
    map: npt.NDArray[np.float32] | None
    """(*spatial), at the size and place of the input."""
    restored: Array | None
    """(C, *spatial), in the input's own type and value range."""
    spread: npt.NDArray[np.float32] | None
    latent: npt.NDArray[np.float32] | None
    pictures: Mapping[str, npt.NDArray[np.float32]]
    """What else the method shows, by name: ([C,] *spatial), at the size and place of the input."""
    space: Space | None = None
    """Of a volume: where its voxels, and so those of the map, lie."""
    slices: Sequence[tuple[str, int, float]] = ()
    """Of a volume seen as slices: axis (z, y or x), index from 0 and score of each."""

    @property
    def path(self) -> str:
        return self.item.path


class Results(Sequence[Result]):
    """Results of several images in order, with their columns as arrays; ``failed`` lists what could not be read."""

    def __init__(self, results: Sequence[Result], failed: Sequence[Failure] = ()) -> None:
        self._results, self.failed = list(results), list(failed)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return Results(self._results[index]) if isinstance(index, slice) else self._results[index]

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        return np.array([r.score for r in self._results])

    @property
    def p_values(self) -> npt.NDArray[np.float64]:
        return np.array([np.nan if r.p_value is None else r.p_value for r in self._results])

    @property
    def flagged(self) -> npt.NDArray[np.bool_]:
        return np.array([bool(r.flagged) for r in self._results])

    @property
    def maps(self) -> list[npt.NDArray[np.float32] | None]:
        return [r.map for r in self._results]

    @property
    def restored(self) -> list[Array | None]:
        return [r.restored for r in self._results]


class Detector:
    """A method with everything around it: geometry, preprocessing, training, calibration, files.

    Settings are words, the same as on the command line and in TOML: those of the method and those of
    :class:`InputSettings`, :class:`~normalcy.train.TrainSettings` and :class:`DecisionSettings`.

    >>> rng = np.random.default_rng(0)
    >>> normal = (100 + 20 * rng.random((80, 16, 16))).astype(np.uint8)
    >>> detector = Detector("pca", false_alarms=0.1).fit(normal)
    >>> defect = normal[:1].copy()
    >>> defect[:, 4:9, 4:9] = 255
    >>> result = detector.score(defect)[0]
    >>> result.flagged, result.map.shape
    (True, (16, 16))
    """

    def __init__(self, method: str = "patchcore", **words: Any) -> None:
        self.name = method
        cls = get(method)
        parts = {"method": cls.Settings, "input": InputSettings, "train": TrainSettings, "decision": DecisionSettings}
        settings = config.share_out(words, parts, method)
        self.settings: Any = settings["method"]
        self.input: InputSettings = settings["input"]
        self.train: TrainSettings = settings["train"]
        self.decision: DecisionSettings = settings["decision"]
        self.preprocess = Preprocess(self.input.preprocess, self.input.size, plane=self.input.slices != "none")
        self.augment = Augment(self.input.augment)
        self.method: Method | None = None
        self.calibrations: dict[str, Calibration] = {}
        self.facts: dict[str, Any] = {}
        """What the fit was: data (name, count, fingerprint), summary, versions, failed images."""
        self.records: list[Record] = []
        """What the training loop logged."""

    # -- learning

    def fit(
        self,
        images: Any,
        *,
        run_dir: Path | str | None = None,
        resume: bool = False,
        log: Log | None = None,
        on_decode: Callable[[int, int], None] | None = None,
    ) -> Detector:
        """Learn from normal images: arrays (N, H, W) or (N, H, W, C), tensors (N, C, H, W), paths, or a data set.

        Of a labelled set the normal training images are used. A part of them is held out for calibration. ``run_dir``
        keeps checkpoints; with ``resume=True`` a killed fit goes on there. Returns self.

        Raises DataError for images that cannot be used together and SettingsError for settings that do not fit them.
        """
        data = normal_training_images(with_split(as_dataset(images), self.train.seed))
        journal = _Journal(Path(run_dir) / TRAIN_LOG if run_dir is not None else None, resume, log)
        rest, held_out = data, None
        if self.decision.calibration:
            kept, carved = carve_out(data.cases, self.decision.calibration, seed=self.train.seed)
            rest, held_out = data.subset(kept), data.subset(carved)
        with _folder(run_dir) as folder:
            self._choose_size(rest)
            self.settings = config.fill(self.settings, data.made)
            self.preprocess, bad = _fit_preprocess(self.preprocess, rest)
            rest = rest.subset([i for i in range(len(rest)) if i not in bad])
            cutting, spill = self._cutting(scoring=False), folder / "images.raw"
            x, origin, failed = decode(rest, self.preprocess, spill, cutting=cutting, on_progress=on_decode)
            shape = (x.shape[1], *self.augment.size_of(x.shape[2:]))
            self.method = self._build(shape)
            training, stopping = self._hold_out(x, [rest.items[i].case for i in origin])
            summary = fit(
                self.method,
                training,
                self.train,
                held_out=stopping,
                augment=self.augment if self.augment.words else None,
                run_dir=Path(run_dir) if run_dir is not None else None,
                resume=resume,
                log=journal,
            )
        self.records = journal.records()
        failed = [*bad.values(), *failed]
        self._remember(data, rest, held_out, summary, failed)
        if held_out is not None:
            self.calibrate(held_out)
        return self

    def calibrate(self, normal: Any) -> None:
        """Learn p-values and thresholds from normal images that the method has not seen."""
        data = as_dataset(normal)
        names = self._fitted.scores or ("",)
        for name in names:
            twin = self.with_score(name) if name else self
            twin.calibrations = {}
            results = (r for r in twin.stream(data) if isinstance(r, Result))
            self.calibrations[name] = calibrate((r.score, r.map) for r in results)

    def with_score(self, score: str) -> Detector:
        """The same fitted detector, scored by another of its method's scores."""
        twin = object.__new__(Detector)
        twin.__dict__ = {**self.__dict__, "method": self._fitted.with_score(score), "calibrations": self.calibrations}
        twin.settings = twin._fitted.settings
        return twin

    # -- scoring

    @property
    def calibration(self) -> Calibration | None:
        """Of the score in use; None where no images were held out."""
        return self.calibrations.get(getattr(self.settings, "score", "") if self._fitted.scores else "")

    def decide(self, false_alarms: float | None = None) -> Decision | None:
        """Thresholds that keep the promised rate of false alarms; None without calibration."""
        if self.calibration is None:
            return None
        return decide(self.calibration, false_alarms or self.decision.false_alarms)

    def score(
        self, images: Any, *, batch_size: int = 32, tile: bool = False, false_alarms: float | None = None
    ) -> Results:
        """Scores, p-values, maps and restored images, in memory; see :meth:`fit` for what ``images`` may be.

        ``tile``: do not resize; cover each image by overlapping tiles of the size that the method knows. The calibration
        does not hold for that unless the detector was fitted with ``tile``, so p-values are then None.

        Images that cannot be read are listed in ``failed``; raises DataError when all are bad.
        """
        data = as_dataset(images)
        results, failed = [], []
        for r in self.stream(data, batch_size=batch_size, tile=tile, decision=self.decide(false_alarms)):
            if isinstance(r, Result):
                results.append(r)
            else:
                failed.append(r)
        if failed and not results:
            raise DataError(f"None of the {len(data)} images can be scored: {failed[0][0]}: {failed[0][1]}")
        return Results(results, failed)

    def stream(
        self,
        data: DataSet,
        *,
        batch_size: int = 32,
        tile: bool = False,
        decision: Decision | None = None,
        then: Callable[[Result], T] | None = None,
    ) -> Iterator[Any]:
        """One :class:`Result` (or ``then(result)``) per image in order, or (path, reason) for one that cannot be used.

        Reading, scoring and ``then`` overlap: ``then`` runs in worker threads, for example to write files. Memory does
        not grow with the number of images.
        """
        method = self._fitted
        check_scheme(self.facts.get("data", {}).get("made", {}), data.made, data.name)
        preprocess, cutting = self.preprocess, self._cutting(scoring=True)
        calibration = self.calibration
        if tile and cutting.slices != "none":
            raise SettingsError(f"{self.name} sees volumes as slices: score them without tile.")
        if tile and cutting.tile is None:
            # Native resolution: without the resize that the size setting puts in.
            preprocess, cutting = replace(preprocess, size=None), replace(cutting, tile=method.shape[1:])
            calibration, decision = None, None
        workers = os.cpu_count() or 1
        large = cutting.tile is not None or preprocess.constants.spatial_dims == 3
        chunk = max(1, batch_size // 16) if large else batch_size

        def read(i: int) -> _Ready | Failure:
            try:
                original = data.read(i)
                tiles, views = cutting.cut(preprocess, original)
                if tiles.shape[1:] != method.shape:
                    raise DataError(
                        f"{self.name} expects images {method.shape} (C, *spatial) after preprocessing, got {tiles.shape[1:]} "
                        f"from {original.shape}: give images of the training images' size, or fit with size=N or tile=N."
                    )
                return _Ready(i, original, tiles, views)
            except DataError as error:
                return data.items[i].path, str(error)

        def finish(ready: _Ready, part: _Part) -> Any:
            result = self._result(data.items[ready.index], ready, part, preprocess, cutting, calibration, decision)
            result = replace(result, space=data.space(ready.index))
            return result if then is None else then(result)

        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as finishers:
            chunks = [range(first, min(first + chunk, len(data))) for first in range(0, len(data), chunk)]
            ahead = [[readers.submit(read, i) for i in numbers] for numbers in chunks[:2]]
            behind: list[list[Future[Any] | Failure]] = []
            for k in range(len(chunks)):
                group = [f.result() for f in ahead.pop(0)]
                if k + 2 < len(chunks):
                    ahead.append([readers.submit(read, i) for i in chunks[k + 2]])
                good = [r for r in group if isinstance(r, _Ready)]
                parts = iter(_forward(method, good, batch_size))
                behind.append([finishers.submit(finish, r, next(parts)) if isinstance(r, _Ready) else r for r in group])
                if len(behind) > 1:
                    yield from (r.result() if isinstance(r, Future) else r for r in behind.pop(0))
            for late in behind:
                yield from (r.result() if isinstance(r, Future) else r for r in late)

    def _result(
        self,
        item: Item,
        ready: _Ready,
        part: _Part,
        preprocess: Preprocess,
        cutting: Cutting,
        calibration: Calibration | None,
        decision: Decision | None,
    ) -> Result:
        def plane(values: Array, view: View) -> Array:
            flat = values.reshape(-1, *view.size)
            back = np.stack([view.geometry.invert_map(one) for one in flat])
            return back.reshape(*values.shape[: values.ndim - len(view.size)], *back.shape[1:])

        def image(values: Array, view: View) -> Array:
            original = ready.original if view.axis is None else np.moveaxis(ready.original, 1 + view.axis, 1)
            return preprocess.invert_image(values, original, view.geometry)

        def whole(pieces: Array | None, invert: Callable[[Array, View], Array] = plane) -> Array | None:
            return None if pieces is None else cutting.join(pieces, ready.views, invert)

        score = self._piece_score(part.image)
        if not np.isfinite(score):
            raise NormalcyError(
                f"{self.name} gave a score that is not finite for {item.path}: fit again with other settings."
            )
        values = whole(part.map)
        restored = whole(part.restored, image)
        if restored is not None and restored.dtype != ready.original.dtype:  # a mean of several views
            seen = cutting.examined(ready.views)
            whole_number = ready.original.dtype.kind in "iu"
            restored = np.where(seen, np.rint(restored) if whole_number else restored, ready.original)
            restored = restored.astype(ready.original.dtype)
        return Result(
            item=item,
            score=score,
            p_value=None if calibration is None else float(calibration.p_values([score])[0]),
            flagged=None if decision is None else decision.flags(score, values),
            map=values,
            restored=restored,
            spread=whole(part.spread),
            latent=None if part.latent is None else part.latent[int(part.image.argmax())].copy(),
            pictures={name: joined for name, p in part.pictures.items() if (joined := whole(p)) is not None},
            slices=_slices(ready.views, part.image),
        )

    def _piece_score(self, scores: Array) -> float:
        """The score of an image from those of its pieces."""
        how = self.input.piece_score
        if isinstance(how, str):
            return float(scores.max() if how == "max" else scores.mean(dtype=np.float64))
        return float(np.quantile(scores, how, method="higher"))

    # -- files

    def to(self, device: str) -> Detector:
        """Move the method to "cpu", "cuda" or "mps"."""
        self._fitted.to(device)
        return self

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write a model folder (see :mod:`normalcy.artefact`); returns its path."""
        method = self._fitted
        description = {
            "normalcy": normalcy.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "method": self.name,
            "settings": config.to_words(method.settings),
            "input": config.to_words(self.input),
            "train": config.to_words(self.train),
            "decision": config.to_words(self.decision),
            "shape": list(method.shape),
            "preprocess": self.preprocess.to_json(),
            **self.facts,
        }
        calibrations = {name: c.to_json() for name, c in self.calibrations.items()} or None
        texts = {"CARD.md": self.card(), TRAIN_LOG: "".join(json.dumps(r) + "\n" for r in self.records)}
        artefact.save(Path(folder), description, method.state_dict(), calibrations, texts, overwrite)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Detector:
        """Read a model folder. Runs no code from it; raises ModelFileError for one that is damaged or unknown."""
        folder = Path(folder)
        words = artefact.read_description(folder)
        try:
            detector = cls.__new__(cls)
            detector.name = str(words["method"])
            method_cls = get(detector.name)
            detector.settings = config.build(method_cls.Settings, words["settings"], detector.name)
            detector.input = config.build(InputSettings, words["input"], "input")
            detector.train = config.build(TrainSettings, words["train"], "train")
            detector.decision = config.build(DecisionSettings, words["decision"], "decision")
            detector.preprocess = Preprocess.from_json(words["preprocess"])
            detector.augment = Augment(detector.input.augment)
            detector.facts = {key: words[key] for key in ("data", "fit", "versions")}
            shape = [int(n) for n in words["shape"]]
            if not 3 <= len(shape) <= 4 or min(shape) < 1 or np.prod([float(n) for n in shape]) > 2**31:
                raise ValueError(f"shape {shape} is impossible")
            weights = artefact.read_weights(folder, words)
            detector.method = detector._build(tuple(shape))
            detector.method.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SettingsError, DataError) as error:
            raise ModelFileError(f"{folder} is damaged or does not fit this normalcy ({_one_line(error)}).") from error
        detector.calibrations = {}
        if (folder / artefact.CALIBRATION).exists():
            calibrations = artefact.read_json(folder / artefact.CALIBRATION)
            detector.calibrations = {name: Calibration.from_json(c) for name, c in calibrations.items()}
        detector.records = _read_log(folder / TRAIN_LOG)
        return detector

    def push_to_hub(self, repo: str, private: bool = True) -> str:
        """Upload the model folder to the Hugging Face hub; returns its address. Needs a login there."""
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=str(Path(folder) / "model")))

    @classmethod
    def from_hub(cls, repo: str, revision: str | None = None) -> Detector:
        """Download a model folder from the Hugging Face hub and load it."""
        from huggingface_hub import snapshot_download

        wanted = [artefact.DESCRIPTION, artefact.WEIGHTS, artefact.CALIBRATION]
        return cls.load(snapshot_download(repo, revision=revision, allow_patterns=wanted))

    def words(self) -> dict[str, Any]:
        """All settings in use."""
        parts = (self.settings, self.input, self.train, self.decision)
        return {word: value for part in parts for word, value in config.to_words(part).items()}

    def card(self) -> str:
        """CARD.md: what the detector was trained on, how it decides, how to use it."""
        data, summary = self.facts.get("data", {}), self.facts.get("fit", {})
        decision = self.decide()
        lines = [
            f"# {self.name} detector",
            "",
            f"Trained on {data.get('count')} normal images of {data.get('name')} (fingerprint {data.get('fingerprint')}), "
            f"in {summary.get('seconds', 0):.0f} s on {summary.get('device')} in {summary.get('precision')}.",
            "",
            f"It sees images of shape {self._fitted.shape} (channels, then space); scores are larger for stranger images.",
        ]
        if decision is not None and self.calibration is not None:
            lines += [
                "",
                f"Calibrated on {self.calibration.count} held-out normal images: a score above {decision.threshold:.6g} flags an "
                f"image, with a promised false-alarm rate of at most {self.decision.false_alarms:g} for images like these.",
            ]
        if data.get("medical"):
            lines += ["", NOTICE]
        lines += ["", "## Use", "", "```", "normalcy score MODEL IMAGES --out RESULTS", "```", "", "## Settings", ""]
        lines += [f"- {word}: {value}" for word, value in self.words().items()]
        return "\n".join(lines) + "\n"

    @property
    def tiled(self) -> bool:
        """Whether it was fitted to see images in tiles."""
        return self._tile(scoring=True) is not None

    # -- private

    @property
    def _fitted(self) -> Method:
        if self.method is None:
            raise SettingsError(f"The {self.name} detector is not fitted yet: call fit() or load one.")
        return self.method

    def _build(self, shape: tuple[int, ...]) -> Method:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            method = get(self.name)(self.settings, shape)
        if (
            self.train.channels_last and len(shape) == 3
        ):  # scoring is faster too, and a loaded method rounds like a fitted one
            method.to(memory_format=torch.channels_last)
        return method

    def _choose_size(self, data: DataSet) -> None:
        """The default size, from the sizes of up to 64 images spread over the set; written down in the model folder."""
        words = (*self.preprocess.plan, *self.augment.plan)
        if self.input.size is not None or self.input.tile is not None or {"resize", "crop"} & {w.name for w in words}:
            return
        sizes = set()
        for i in np.unique(np.linspace(0, len(data) - 1, min(64, len(data))).astype(int)):
            try:
                sizes.add(self.preprocess.size_of(data.size(int(i))))
            except NormalcyError:
                continue  # an unreadable image: listed when it is decoded
        if self.input.slices == "none":
            side = {2: 256, 3: 64}[len(next(iter(sizes)))] if sizes else 0
        else:
            side, axes = 256, ["zyx".index(name) for name in self.input.slices]
            sizes = {tuple(n for k, n in enumerate(size) if k != axis) for size in sizes for axis in axes}
        if len(sizes) > 1 or any(max(size) > side for size in sizes):
            self.preprocess = replace(self.preprocess, size=side)

    def _tile(self, scoring: bool) -> tuple[int, ...] | None:
        """Sides of a tile; random crops in training are tiles in scoring."""
        side = self.input.tile
        crops = [int(step.numbers[0]) for step in self.augment.plan if step.name == "crop"]
        if side is None and crops and scoring:
            side = crops[0]
        return None if side is None else (side,) * self.preprocess.constants.spatial_dims

    def _cutting(self, scoring: bool) -> Cutting:
        i = self.input
        tile, overlap = self._tile(scoring), i.tile_overlap if scoring else 0.0
        return Cutting(tile, overlap, i.tile_window, i.slices, i.slice_range, i.slice_body)

    def _hold_out(
        self, x: npt.NDArray[np.float32] | DiskImages, cases: Sequence[str]
    ) -> tuple[Any, npt.NDArray[np.float32] | None]:
        """Training images, and held-out ones where a stage stops early or concludes on them; whole cases."""
        if not any(stage.early_stop or stage.conclude for stage in self._fitted.stages()):
            return torch.from_numpy(x) if isinstance(x, np.ndarray) else x, None
        kept, carved = carve_out(cases, 0.1, minimum=1, seed=self.train.seed + 1)
        if isinstance(x, DiskImages):
            return _Rows(x, kept), x[carved]
        return torch.from_numpy(x[kept]), x[carved]

    def _remember(
        self, data: DataSet, rest: DataSet, held_out: DataSet | None, summary: FitSummary, failed: Sequence[Failure]
    ) -> None:
        self.facts = {
            "data": {
                "name": data.name,
                "count": len(rest) - len(failed),
                "held_out": 0 if held_out is None else len(held_out),
                "fingerprint": data.fingerprint(),
                "medical": data.is_medical,
                "made": data.made,
                "failed": [list(f) for f in failed],
            },
            "fit": vars(summary).copy(),
            "versions": versions(),
        }


def load(folder: Path | str) -> Detector:
    """Read a fitted detector from a model folder."""
    return Detector.load(folder)


def with_split(data: DataSet, seed: int = 0) -> DataSet:
    """The data set as it is, or with a train and a test split where it has anomalous images but no split."""
    if any(item.label == 1 for item in data.items) and not any(item.split for item in data.items):
        return train_test(data, seed=seed)
    return data


def normal_training_images(data: DataSet) -> DataSet:
    """What a method may learn from: images that are not labelled anomalous, of the training split where there is one."""
    split = "train" if any(item.split for item in data.items) else None
    chosen = [i for i, item in enumerate(data.items) if item.label != 1 and item.split == split]
    if not chosen:
        raise DataError(f"{data.name} has no normal training images: a method learns from normal images alone.")
    return data.subset(chosen)


# -- private ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ready:
    """An image read and preprocessed: ``tiles`` (T, C, *shape), its pieces, one where it is not cut."""

    index: int
    original: Array
    tiles: npt.NDArray[np.float32]
    views: list[View]


_PARTS = ("image", "map", "restored", "spread", "latent")


@dataclass(frozen=True)
class _Part:
    """Scores of one image's tiles as arrays."""

    image: Array
    map: Array | None
    restored: Array | None
    spread: Array | None
    latent: Array | None
    pictures: Mapping[str, Array]


class _Rows:
    """Some rows of images on disk."""

    def __init__(self, images: DiskImages, rows: npt.NDArray[np.intp]) -> None:
        self.images, self.rows, self.shape = images, rows, (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        return self.images[self.rows[index]]


def _forward(method: Method, group: Sequence[_Ready], batch_size: int) -> Iterator[_Part]:
    """Scores of each image, whose tiles share batches with its neighbours'."""
    if not group:
        return
    tiles = np.concatenate([r.tiles for r in group]) if len(group) > 1 else group[0].tiles
    pieces: list[Scores] = []
    if method.device.type == "cpu":
        batch_size = min(batch_size, max(1, AT_ONCE // math.prod(method.shape[1:])))
    for first in range(0, len(tiles), batch_size):
        x = torch.from_numpy(tiles[first : first + batch_size]).to(method.device)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        pieces.append(method.score(x))

    def joined(values: Sequence[torch.Tensor | None]) -> Array | None:
        return None if values[0] is None else torch.cat(cast(list[torch.Tensor], values)).float().cpu().numpy()

    columns = {name: joined([getattr(p, name) for p in pieces]) for name in _PARTS}
    pictures = {name: joined([p.pictures[name] for p in pieces]) for name in pieces[0].pictures}
    start = 0
    for ready in group:
        rows = slice(start, start + len(ready.tiles))
        start = rows.stop
        here = {name: None if c is None else c[rows] for name, c in columns.items()}
        yield _Part(**here, pictures={name: c[rows] for name, c in pictures.items() if c is not None})  # type: ignore[arg-type]


def _slices(views: Sequence[View], scores: Array) -> list[tuple[str, int, float]]:
    """Axis, index and score of each slice."""
    found, start = [], 0
    for view in views:
        if view.axis is not None and view.chosen is not None:
            places = zip(view.in_image, scores[start : start + view.count])
            found += [("zyx"[view.axis], int(index), float(score)) for index, score in places]
        start += view.count
    return found


def _fit_preprocess(preprocess: Preprocess, data: DataSet) -> tuple[Preprocess, dict[int, Failure]]:
    """Fitted constants, and the images that could not be read on the way."""
    bad: dict[int, Failure] = {}
    good = list(range(len(data)))
    while good:
        current = [0]

        def read(k: int, current: list[int] = current, good: list[int] = good) -> Array:
            current[0] = good[k]
            return data.read(good[k])

        try:
            return preprocess.fit(read, len(good)), bad
        except DataError as error:
            bad[current[0]] = (data.items[current[0]].path, str(error))
            good.remove(current[0])
            if len(bad) > max(10, len(data) // 2):
                break
    reasons = "; ".join(f"{path}: {reason}" for path, reason in list(bad.values())[:3])
    raise DataError(f"Too few of the {len(data)} training images of {data.name} can be used: {reasons}")


class _Journal:
    """Records of the loop: kept, written to the run folder line by line, passed on."""

    def __init__(self, path: Path | None, resume: bool, then: Log | None) -> None:
        self.path, self.then = path, then
        self.kept = _read_log(path) if path is not None and resume else []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(r) + "\n" for r in self.kept), encoding="utf-8")

    def __call__(self, record: Record) -> None:
        self.kept.append(record)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self.then is not None:
            self.then(record)

    def records(self) -> list[Record]:
        """The last record of each step: those after a checkpoint are written again by a resumed run."""
        by_step = {(r.get("stage"), r.get("event"), r.get("step"), "held_out_loss" in r): r for r in self.kept}
        return list(by_step.values())


def _read_log(path: Path) -> list[Record]:
    """Records of an earlier run; a line that was cut off by a kill is passed over."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return [r for r in records if isinstance(r, dict)]


class _folder:
    """The run folder, or one for the time of the fit."""

    def __init__(self, run_dir: Path | str | None) -> None:
        self.kept = run_dir is not None
        self.path = Path(run_dir) if run_dir is not None else Path(tempfile.mkdtemp(prefix="normalcy-"))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        (self.path / "images.raw").unlink(missing_ok=True)
        if not self.kept:
            shutil.rmtree(self.path, ignore_errors=True)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
