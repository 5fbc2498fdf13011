"""What a user holds: preprocessing + method + calibration, over arrays, paths and data sets."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from normalcy import config, model_folder
from normalcy.arrays import Array, Float32, Indices
from normalcy.calibrate import Calibration, Decision, calibrate, decide
from normalcy.data.dataset import DataSet, Item
from normalcy.data.diffusion import check_scheme
from normalcy.data.open import as_dataset
from normalcy.data.splits import hold_out, normal_training_images, with_split
from normalcy.errors import DataError, ModelFileError, NormalcyError, SettingsError
from normalcy.files import read_json
from normalcy.method import Method
from normalcy.methods import get
from normalcy.preprocessing.augment import Augment
from normalcy.preprocessing.decode import DiskImages, Failure, decode
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.views import SliceView, View, ViewSettings
from normalcy.provenance import versions
from normalcy.scoring import NOTICE, Result, Results, _forward, _Part, _Ready, _slices
from normalcy.settings import COMMON, DecisionSettings, InputSettings
from normalcy.training.fit import fit
from normalcy.training.log import TRAIN_LOG, Journal, Log, Record, read_log
from normalcy.training.settings import FitSummary, TrainSettings

T = TypeVar("T")


class Detector:
    """A method with everything around it: geometry, preprocessing, training, calibration, files.

    Settings are words, the same as on the command line and in TOML: those of the method and those of
    :class:`InputSettings`, :class:`~normalcy.training.settings.TrainSettings` and :class:`DecisionSettings`.

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
        settings = config.assign_settings(words, {"method": cls.Settings, **COMMON}, method)
        self.settings: Any = settings["method"]
        self.input: InputSettings = settings["input"]
        self.train: TrainSettings = settings["training"]
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
        shared: Path | None = None,
        log: Log | None = None,
        on_decode: Callable[[int, int], None] | None = None,
    ) -> Detector:
        """Learn from normal images: arrays (N, H, W) or (N, H, W, C), tensors (N, C, H, W), paths, or a data set.

        Of a labelled set the normal training images are used. A part of them is held out for calibration. ``run_dir``
        keeps checkpoints; with ``resume=True`` a killed fit goes on there. ``shared`` is a folder of stages that fits of
        one method with different settings have in common (:attr:`Method.late_settings`). Returns self.

        Raises DataError for images that cannot be used together and SettingsError for settings that do not fit them.
        """
        data = normal_training_images(with_split(as_dataset(images), self.train.seed))
        journal = Journal(Path(run_dir) / TRAIN_LOG if run_dir is not None else None, resume, log)
        rest, held_out = data, None
        if self.decision.calibration:
            kept, carved = hold_out(data.cases, self.decision.calibration, seed=self.train.seed)
            rest, held_out = data.subset(kept), data.subset(carved)
        with _folder(run_dir) as folder:
            self._choose_size(rest)
            self.settings = config.fill(self.settings, data.scheme)
            self.preprocess, bad = _fit_preprocess(self.preprocess, rest)
            rest = rest.subset([i for i in range(len(rest)) if i not in bad])
            cutting, spill = self._view_settings(scoring=False), folder / "images.raw"
            x, origin, failed = decode(rest, self.preprocess, spill, views=cutting, on_progress=on_decode)
            shape = (x.shape[1], *self.augment.size_of(x.shape[2:]))
            self.method = self._build(shape)
            training, stopping = self._hold_out(x, [rest.items[i].case for i in origin])
            summary = fit(
                self.method,
                training,
                self.train,
                held_out=stopping,
                augment=self.augment if self.augment.steps else None,
                run_dir=Path(run_dir) if run_dir is not None else None,
                resume=resume,
                shared=shared,
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
        return decide(self.calibration, self.decision.false_alarms if false_alarms is None else false_alarms)

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
        check_scheme(self.facts.get("data", {}).get("scheme", {}), data.scheme, data.name)
        preprocess, cutting = self.preprocess, self._view_settings(scoring=True)
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
        cutting: ViewSettings,
        calibration: Calibration | None,
        decision: Decision | None,
    ) -> Result:
        def plane(values: Array, view: View) -> Array:
            flat = values.reshape(-1, *view.size)
            back = np.stack([view.geometry.invert_map(one) for one in flat])
            return back.reshape(*values.shape[: values.ndim - len(view.size)], *back.shape[1:])

        def image(values: Array, view: View) -> Array:
            original = ready.original
            if isinstance(view, SliceView):
                original = np.moveaxis(original, 1 + view.axis, 1)
            return preprocess.invert_image(values, original, view.geometry)

        def whole(pieces: Array | None, invert: Callable[[Array, View], Array] = plane) -> Array | None:
            return None if pieces is None else cutting.join(pieces, ready.views, invert)

        score = self._view_score(part.image)
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
            uncertainty=whole(part.uncertainty),
            latent=None if part.latent is None else part.latent[int(part.image.argmax())].copy(),
            extra_maps={name: joined for name, p in part.extra_maps.items() if (joined := whole(p)) is not None},
            slices=_slices(ready.views, part.image),
        )

    def _view_score(self, scores: Array) -> float:
        """The score of an image from those of its pieces."""
        how = self.input.view_score
        if isinstance(how, str):
            return float(scores.max() if how == "max" else scores.mean(dtype=np.float64))
        return float(np.quantile(scores, how, method="higher"))

    # -- files

    def to(self, device: str) -> Detector:
        """Move the method to "cpu", "cuda" or "mps"."""
        self._fitted.to(device)
        return self

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write a model folder (see :mod:`normalcy.model_folder`); returns its path."""
        method = self._fitted
        description = {
            "normalcy": versions()["normalcy"],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "method": self.name,
            "settings": config.to_dict(method.settings),
            "input": config.to_dict(self.input),
            "train": config.to_dict(self.train),
            "decision": config.to_dict(self.decision),
            "shape": list(method.shape),
            "preprocess": self.preprocess.to_json(),
            **self.facts,
        }
        calibrations = {name: c.to_json() for name, c in self.calibrations.items()} or None
        texts = {"CARD.md": self.card(), TRAIN_LOG: "".join(json.dumps(r) + "\n" for r in self.records)}
        model_folder.save(Path(folder), description, method.state_dict(), calibrations, texts, overwrite)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Detector:
        """Read a model folder. Runs no code from it; raises ModelFileError for one that is damaged or unknown."""
        folder = Path(folder)
        words = model_folder.read_description(folder)
        try:
            detector = cls.__new__(cls)
            detector.name = str(words["method"])
            method_cls = get(detector.name)
            detector.settings = config.build(method_cls.Settings, words["settings"], detector.name)
            detector.input = InputSettings.from_json(words["input"])
            detector.train = config.build(TrainSettings, words["train"], "train")
            detector.decision = config.build(DecisionSettings, words["decision"], "decision")
            detector.preprocess = Preprocess.from_json(words["preprocess"])
            detector.augment = Augment(detector.input.augment)
            detector.facts = {key: words[key] for key in ("data", "fit", "versions")}
            shape = [int(n) for n in words["shape"]]
            if not 3 <= len(shape) <= 4 or min(shape) < 1 or np.prod([float(n) for n in shape]) > 2**31:
                raise ValueError(f"shape {shape} is impossible")
            weights = model_folder.read_weights(folder, words)
            detector.method = detector._build(tuple(shape))
            detector.method.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SettingsError, DataError) as error:
            raise ModelFileError(f"{folder} is damaged or does not fit this normalcy ({_one_line(error)}).") from error
        detector.calibrations = {}
        if (folder / model_folder.CALIBRATION).exists():
            calibrations = read_json(folder / model_folder.CALIBRATION)
            detector.calibrations = {name: Calibration.from_json(c) for name, c in calibrations.items()}
        detector.records = read_log(folder / TRAIN_LOG)
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

        wanted = [model_folder.DESCRIPTION, model_folder.WEIGHTS, model_folder.CALIBRATION]
        return cls.load(snapshot_download(repo, revision=revision, allow_patterns=wanted))

    def words(self) -> dict[str, Any]:
        """All settings in use."""
        parts = (self.settings, self.input, self.train, self.decision)
        return {word: value for part in parts for word, value in config.to_dict(part).items()}

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

    def _view_settings(self, scoring: bool) -> ViewSettings:
        i = self.input
        tile, overlap = self._tile(scoring), i.tile_overlap if scoring else 0.0
        return ViewSettings(tile, overlap, i.tile_window, i.slices, i.slice_range, i.slice_body)

    def _hold_out(self, x: Float32 | DiskImages, cases: Sequence[str]) -> tuple[Any, Float32 | None]:
        """Training images, and held-out ones where a stage stops early or concludes on them; whole cases."""
        if not any(stage.early_stop or stage.finalise for stage in self._fitted.stages()):
            return torch.from_numpy(x) if isinstance(x, np.ndarray) else x, None
        kept, carved = hold_out(cases, 0.1, minimum=1, seed=self.train.seed + 1)
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
                "scheme": data.scheme,
                "failed": [list(f) for f in failed],
            },
            "fit": vars(summary).copy(),
            "versions": versions(),
        }


def load(folder: Path | str) -> Detector:
    """Read a fitted detector from a model folder."""
    return Detector.load(folder)


# -- private ---------------------------------------------------------------------------------------------------------


class _Rows:
    """Some rows of images on disk."""

    def __init__(self, images: DiskImages, rows: Indices) -> None:
        self.images, self.rows, self.shape = images, rows, (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Float32:
        return self.images[self.rows[index]]


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
