"""What a user holds: preprocessing + method + calibration, over arrays, paths and data sets."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normalcy import config, model_folder
from normalcy.arrays import Array, Float32, Indices, Mask
from normalcy.calibrate import Calibration, Decision, calibrate, decide, decide_on_validation, needed_images
from normalcy.data.dataset import DataSet, Failure
from normalcy.data.diffusion import check_scheme
from normalcy.data.kinds import Kind
from normalcy.data.open import as_dataset
from normalcy.data.roi import ROI, encode_roi, read_roi, saved_roi
from normalcy.data.splits import hold_out, normal_training_images, with_split
from normalcy.engines.graph import ENGINES, open_graph
from normalcy.engines.method import GraphMethod, graph_method
from normalcy.errors import DataError, ModelFileError, NormalcyWarning, SettingsError
from normalcy.files import remove, remove_empty, temporary_folder
from normalcy.method import Method
from normalcy.methods import get
from normalcy.preprocessing.augment import Augment
from normalcy.preprocessing.decode import DiskImages, decode
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.plan import Plan, plan, survey
from normalcy.preprocessing.views import ViewSettings
from normalcy.provenance import versions
from normalcy.scoring import Pipeline, Result, Results, stream, within_region
from normalcy.settings import COMMON, DecisionSettings, InputSettings
from normalcy.training.checkpoint import digest_of
from normalcy.training.generators import caller_generators_kept, seed_generators
from normalcy.training.log import TRAIN_LOG, Journal, Log, Record, read_log
from normalcy.training.processes import Processes, current, joined
from normalcy.training.settings import FitSummary, TrainSettings

BATCH = 32
"""Images that are scored together unless told otherwise."""


class Detector:
    """A method with everything around it: geometry, preprocessing, training, calibration, files.

    Keywords are settings, named as on the command line and in TOML: those of the method and those of
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
        self._given = self.settings
        self.input: InputSettings = settings["input"]
        self.train: TrainSettings = settings["training"]
        self.decision: DecisionSettings = settings["decision"]
        self.preprocess = Preprocess(self.input.preprocess, self.input.size, plane=self.input.slices != "none")
        self.augment = Augment(self.input.augment)
        self.method: Method | None = None
        self._graph: GraphMethod | None = None
        """Scores in the place of the method, see :meth:`use_engine`."""
        self._source: tuple[Path | None, str] = (None, "")
        """The model folder and the checksum of its weights."""
        self._first = True
        """Whether it was fitted by the first of the processes of its fit, or alone."""
        self.roi: Mask | None = None
        """The region of interest of the setting ``roi``, (H, W), since fit."""
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
        stopping: float = 0.1,
        log: Log | None = None,
        on_decode: Callable[[int, int], None] | None = None,
    ) -> Detector:
        """Learn from normal images: arrays (N, H, W) or (N, H, W, C), tensors (N, C, H, W), paths, or a data set.

        Processes that torchrun has started call this with the same settings and images and make one fit together; the first
        of each node reads the images. ``run_dir``, ``shared``, ``log`` and :meth:`save` write in the first process only.

        Of a labelled set the normal training images are used. A part of them is held out for calibration. ``run_dir``
        keeps checkpoints; with ``resume=True`` an interrupted fit resumes there. ``shared`` is a folder of stages that fits of
        one method with different settings have in common (:attr:`Method.late_settings`). ``stopping`` is the fraction of the
        remaining images on which stages stop early or conclude, where a method has such stages. Returns self.

        Raises DataError for images that cannot be used together and SettingsError for settings that do not fit them.
        """
        from normalcy.training.fit import fit  # its libraries take as long to import as torch; scoring does without

        with joined() as processes:
            self._first = processes.first
            if not processes.first:
                run_dir = shared = log = None
            self.roi = None if self.input.roi is None else read_roi(self.input.roi)
            given = normal_training_images(with_split(as_dataset(images), self.train.seed))
            data = given.within(self.roi).filled()
            # What an earlier fit chose by its images does not hold for these.
            self.settings = config.fill_unset(self._given, data.scheme)
            with ExitStack() as engine, _run_folder(run_dir) as folder, _shared_folder(folder, processes) as decoded:
                work = partial(self._read, data, decoded / "images.raw", processes, on_decode)
                read = processes.once_per_node(work)
                self._check_alike(processes, read)
                self.preprocess, x, origin = read.preprocess, read.x, read.origin
                shape = (x.shape[1], *self.augment.size_of(x.shape[2:]))
                self.method = self._build(shape)
                journal = Journal(Path(run_dir) / TRAIN_LOG if run_dir is not None else None, resume, log)
                if self.train.engine != "torch" and self.train.devices == 1:
                    from normalcy.engines.frozen import backbones_by_engine

                    engine.enter_context(backbones_by_engine(self.method, len(x)))
                learnt, watched = self._hold_out(x, [data.items[i].case for i in origin], stopping)
                summary = fit(
                    self.method,
                    learnt,
                    self.train,
                    held_out=watched,
                    augment=self.augment if self.augment.steps else None,
                    run_dir=Path(run_dir) if run_dir is not None else None,
                    resume=resume,
                    shared=shared,
                    log=journal,
                )
                self.records = journal.records()
                self.calibrations = {}
                failed = [*read.failed]
                if len(read.carved):
                    failed += self.calibrate(data.subset(read.carved))
            self._remember(given, len(set(origin.tolist())), read.planned, summary, failed)
            warning = self.no_flags()
            if warning is not None:
                warnings.warn(warning, NormalcyWarning, stacklevel=2)
        return self

    def calibrate(self, normal: Any) -> list[Failure]:
        """Learn p-values and thresholds from normal images that the method has not seen; returns those that cannot be used.

        Raises DataError when none can.
        """
        data = as_dataset(normal)
        failed: list[Failure] = []
        for name in self._fitted.scores or ("",):
            scored = copy.copy(self.with_score(name) if name else self)
            scored.calibrations = {}
            failed = []  # the same images for each score

            def results(
                scored: Detector = scored, failed: list[Failure] = failed
            ) -> Iterator[tuple[float, Array | None]]:
                for result in scored._all_results(data):
                    if isinstance(result, Failure):
                        failed.append(result)
                    else:
                        yield result
                if len(failed) == len(data):
                    reason = f": {failed[0].path}: {failed[0].reason}" if failed else ""
                    raise DataError(f"None of the {len(data)} images held out for calibration can be scored{reason}")

            self.calibrations[name] = calibrate(results())
        return failed

    def _all_results(self, data: DataSet) -> Iterator[Failure | tuple[float, Array | None]]:
        """(score, map) of each image in order; the processes of a fit score batches in turn, as one would, and all get all."""
        processes = current()

        def outcome(result: Result | Failure) -> Failure | tuple[float, Array | None]:
            if isinstance(result, Failure):
                return result
            return result.score, result.map if result.roi is None else _inside(result.map, result.roi)

        if processes.count == 1:
            yield from map(outcome, self.stream(data))
            return
        firsts = range(processes.rank * BATCH, len(data), processes.count * BATCH)
        blocks = (data.subset(range(first, min(first + BATCH, len(data)))) for first in firsts)
        yield from processes.dealt([outcome(result) for result in self.stream(block)] for block in blocks)

    def calibrated_on(self, normal: DataSet) -> None:
        """Remember on which images the calibration was computed again: they are no test images of this detector."""
        calibration = self.calibration
        data = {**self.facts["data"], "held_out": 0 if calibration is None else calibration.count}
        data["calibrated_on"] = {"name": normal.name, "count": len(normal), "fingerprint": normal.fingerprint()}
        traces = [normal.trace(i) for i in range(len(normal))]
        data["chosen_on"] = sorted({*data.get("chosen_on", ()), *traces})
        self.facts = {**self.facts, "data": data}

    def with_score(self, score: str) -> Detector:
        """The same fitted detector, scored by another of its method's scores."""
        other = copy.copy(self)
        other.method, other._graph = self._fitted.with_score(score), None
        other.settings = other.method.settings
        return other

    # -- scoring

    def use_engine(self, engine: str = "auto", images: int | None = None) -> str:
        """Score by "torch", "onnxruntime" or "openvino" from now on; returns the name of the one in use.

        "auto": onnxruntime, or else OpenVINO, on a CPU where it is installed and the score can be exported, once it pays for
        ``images`` images (see :func:`normalcy.engines.cached.faster`); else torch. Scores agree to 1e-4. An exported model
        stays with its graph.

        Raises SettingsError for an engine that is unknown, missing or cannot score by this method.
        """
        if engine not in ("auto", "torch", *ENGINES):
            raise SettingsError(f"engine must be one of auto, torch, {', '.join(ENGINES)}, got {engine!r}.")
        method, (folder, weights) = self._fitted, self._source
        if isinstance(method, GraphMethod):
            if engine not in ("auto", method.graph.engine):
                raise SettingsError(
                    f"This exported model runs by {method.graph.engine}: give the engine when it is loaded."
                )
        elif engine == "torch":
            self._graph = None
        else:
            from normalcy.engines.cached import faster

            self._graph = faster(method, folder, weights, engine, images)
        return self.engine

    @property
    def engine(self) -> str:
        """The engine that scores: torch, onnxruntime or openvino."""
        method = self._graph or self._fitted
        return method.graph.engine if isinstance(method, GraphMethod) else "torch"

    @property
    def folder(self) -> Path | None:
        """The model folder that it was loaded from."""
        return self._source[0]

    @property
    def checksum(self) -> str:
        """Of the weights in that folder; empty without one."""
        return self._source[1]

    @property
    def calibration(self) -> Calibration | None:
        """Of the score in use; None where no images were held out."""
        return self.calibrations.get(getattr(self.settings, "score", "") if self._fitted.scores else "")

    def decide(self, false_alarms: float | None = None) -> Decision | None:
        """Thresholds that bound the false-positive rate, by default at the setting ``false_alarms``; None without calibration."""
        if self.calibration is None:
            return None
        return decide(self.calibration, self.decision.false_alarms if false_alarms is None else false_alarms)

    def no_flags(self) -> str | None:
        """Why no image can be flagged at the setting ``false_alarms``: too few were held out; None where that is not so."""
        calibration, rate = self.calibration, self.decision.false_alarms
        needed = needed_images(rate)
        if calibration is None or calibration.count >= needed:
            return None
        return (
            f"no image can be flagged with {calibration.count} held-out images at false-alarm rate {rate:g}: at least "
            f"{needed} are needed. Add normal images, or allow more false alarms."
        )

    def decide_on(self, data: Any, rule: str) -> Decision:
        """Thresholds chosen on validation images by a rule of :func:`~normalcy.calibrate.decide_on_validation`: "max_f1" or
        "youden" (images with labels of both kinds; masks for the pixel threshold) or "minimum_area:PIXELS" (normal images).

        Never on the images that are evaluated: a threshold chosen on them is biased.
        """
        data = as_dataset(data)
        if rule.startswith("minimum_area"):
            data = data.subset([i for i, item in enumerate(data.items) if item.label != 1])
        scored = [(i, r) for i, r in enumerate(self.stream(data)) if isinstance(r, Result)]
        known = [r.item.label for _, r in scored]
        labels = [int(label) for label in known if label is not None] if None not in known else None
        maps = [r.map for _, r in scored if r.map is not None] or None
        masks = [mask for i, r in scored if (mask := _truth(data, i, r)) is not None] if data.has_masks else []
        usable = masks if maps is not None and len(masks) == len(maps) else None
        return decide_on_validation(rule, [r.score for _, r in scored], labels, maps, usable)

    def score(
        self, images: Any, *, batch_size: int = BATCH, tile: bool = False, false_alarms: float | None = None
    ) -> Results:
        """Scores, p-values, maps and restored images, in memory; see :meth:`fit` for what ``images`` may be.

        ``tile``: do not resize; cover each image by overlapping tiles of the size that the method sees. The calibration
        does not hold for that unless the detector was fitted with ``tile``, so p-values are then None.

        Images that cannot be read are listed in ``failed``; raises DataError when all are bad.
        """
        data = as_dataset(images)
        results: list[Result] = []
        failed: list[Failure] = []
        for r in self.stream(data, batch_size=batch_size, tile=tile, decision=self.decide(false_alarms)):
            results.append(r) if isinstance(r, Result) else failed.append(r)
        if failed and not results:
            raise DataError(f"None of the {len(data)} images can be scored: {failed[0].path}: {failed[0].reason}")
        return Results(results, failed)

    def stream(
        self, data: DataSet, *, batch_size: int = BATCH, tile: bool = False, decision: Decision | None = None
    ) -> Iterator[Result | Failure]:
        """One result at a time, see :func:`normalcy.scoring.stream`; flagged by ``decision``, if any."""
        facts = self.facts.get("data", {})
        check_scheme(facts.get("scheme", {}), data.scheme, data.name)
        data = within_region(data, self.roi, facts)
        return stream(self._pipeline(tile, decision), data, batch_size)

    def _pipeline(self, tile: bool, decision: Decision | None) -> Pipeline:
        method: Method = self._graph or self._fitted
        preprocess, views = self.preprocess, self._view_settings(scoring=True)
        calibration = self.calibration
        if tile and views.slices != "none":
            raise SettingsError(f"{self.name} sees volumes as slices: score them without tile.")
        if tile and views.tile is None:
            # Native resolution: without the resize that the size setting puts in.
            preprocess, views = replace(preprocess, size=None), replace(views, tile=method.shape[1:])
            calibration, decision = None, None
        return Pipeline(method, preprocess, views, self.input.view_score, calibration, decision)

    # -- files

    def to(self, device: str) -> Detector:
        """Move the method to "cpu", "cuda" or "mps"."""
        self._fitted.to(device)
        self._graph = None
        return self

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write a model folder (see :mod:`normalcy.model_folder`); returns its path.

        Of processes that torchrun has fitted together, only the first writes; the others do not wait for it.
        """
        method = self._fitted
        if not self._first:
            return Path(folder)
        description = {
            "normalcy": versions()["normalcy"],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "method": self.name,
            "settings": model_folder.without_folders(config.to_dict(method.settings)),
            "input": config.to_dict(self.input if self.roi is None else replace(self.input, roi=ROI)),
            "train": config.to_dict(self.train),
            "decision": config.to_dict(self.decision),
            "shape": list(method.shape),
            "preprocess": self.preprocess.to_json(),
            **self.facts,
        }
        description["data"] = model_folder.private(self.facts["data"])
        calibrations = {name: c.to_json() for name, c in self.calibrations.items()} or None
        texts = {"CARD.md": self.card(), TRAIN_LOG: "".join(json.dumps(r) + "\n" for r in self.records)}
        files = {} if self.roi is None else {ROI: encode_roi(self.roi)}
        if files:
            description["roi_sha256"] = hashlib.sha256(files[ROI]).hexdigest()
        model_folder.save(Path(folder), description, method.state_dict(), calibrations, texts, overwrite, files)
        return Path(folder)

    @classmethod
    @torch.inference_mode(False)  # weights loaded in inference mode could give no gradients
    def load(cls, folder: Path | str, engine: str | None = None) -> Detector:
        """Read a model folder, or one that export wrote; ``engine`` as for :meth:`use_engine`, by default torch, or the engine
        that an exported graph was written for.

        Runs no code from it; raises ModelFileError for one that is damaged or unknown.
        """
        folder = Path(folder)
        description = model_folder.read_description(folder)
        graph = (
            open_graph(folder, description["graph"], engine or "auto", torch.get_num_threads())
            if "graph" in description
            else None
        )
        try:
            given = config.to_dict(InputSettings.from_json(description["input"]))
            parts = [description["settings"], given, description["train"], description["decision"]]
            detector = cls(
                str(description["method"]), **{name: value for part in parts for name, value in part.items()}
            )
            detector.roi = saved_roi(folder, description)
            if detector.roi is not None:
                detector.input = replace(detector.input, roi=str(folder / ROI))  # where another fit finds it
            detector.preprocess = Preprocess.from_json(description["preprocess"])
            detector.facts = {key: description[key] for key in ("data", "fit", "versions")}
            shape = tuple(description["shape"])
            if graph is not None:
                detector.method = graph_method(get(detector.name), detector.settings, shape, graph)
            else:
                detector.method = model_folder.read_weights(folder, description, lambda: detector._build(shape))
                detector.method.eval()  # once, here: scoring switches no mode
        except ModelFileError:
            raise
        except Exception as error:  # whatever impossible settings make of the constructors, MemoryError included
            raise ModelFileError(f"{folder} is damaged or does not fit this normalcy ({_one_line(error)}).") from error
        calibrations = model_folder.read_calibrations(folder)
        detector.calibrations = {name: Calibration.from_json(c) for name, c in calibrations.items()}
        detector.records = read_log(folder / TRAIN_LOG)
        detector._source = (folder, str(description.get("weights_sha256", "")))
        if engine is not None and graph is None:
            detector.use_engine(engine)
        return detector

    def hub_files(self) -> dict[str, int]:
        """What :meth:`push_to_hub` would upload: name of each file -> its size in bytes. Nothing is sent."""
        with temporary_folder() as folder:
            saved = self.save(Path(folder) / "model")
            return {path.name: path.stat().st_size for path in sorted(saved.iterdir())}

    def push_to_hub(self, repo: str, private: bool = True) -> str:
        """Upload the model folder to the Hugging Face hub; returns its address. Needs a login there.

        Only the files that :meth:`hub_files` lists are sent.
        """
        from huggingface_hub import HfApi

        with temporary_folder() as folder:
            self.save(Path(folder) / "model")
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=str(Path(folder) / "model")))

    @classmethod
    def from_hub(cls, repo: str, revision: str | None = None) -> Detector:
        """Download a model folder from the Hugging Face hub and load it."""
        from huggingface_hub import snapshot_download

        wanted = [model_folder.DESCRIPTION, model_folder.WEIGHTS, model_folder.CALIBRATION, ROI]
        return cls.load(snapshot_download(repo, revision=revision, allow_patterns=wanted))

    def all_settings(self) -> dict[str, Any]:
        """All settings in use."""
        parts = (self.settings, self.input, self.train, self.decision)
        return {word: value for part in parts for word, value in config.to_dict(part).items()}

    def outcome(self) -> dict[str, float]:
        """What the fit came to, in numbers: images, seconds, steps, thresholds, quantiles of the held-out scores.

        For a run of an experiment tracker, see :func:`normalcy.training.tracking.tracking`.
        """
        fit, data = self.facts["fit"], self.facts["data"]
        numbers = {
            "seconds": fit["seconds"],
            "steps": fit["steps"],
            "images": data["count"],
            "held_out": data["held_out"],
        }
        calibration, decision = self.calibration, self.decide()
        if calibration is not None and decision is not None:
            numbers |= {"false_alarms": self.decision.false_alarms, "threshold": decision.threshold}
            if decision.pixel_threshold is not None:
                numbers["pixel_threshold"] = decision.pixel_threshold
            quantiles = np.quantile(calibration.scores, (0.5, 0.9, 1.0)).tolist()
            numbers |= dict(zip(("held_out_median", "held_out_90", "held_out_largest"), quantiles))
        return numbers

    def card(self) -> str:
        """CARD.md: what the detector was trained on, how it decides, how to use it."""
        decision = self.decide()
        held_out = 0 if self.calibration is None else self.calibration.count
        threshold = None if decision is None else decision.threshold
        return model_folder.card(
            self.name,
            self._fitted.shape,
            self.facts,
            model_folder.without_folders(self.all_settings()),
            threshold,
            held_out,
            self.decision.false_alarms,
            self.no_flags(),
            self._roi_in_words(),
            self._fitted.notes(),
        )

    @property
    def tiled(self) -> bool:
        """Whether it was fitted to see images in tiles."""
        return self._tile(scoring=True) is not None

    # -- private

    def _roi_in_words(self) -> str | None:
        if self.roi is not None:
            return f"{self.roi.mean():.1%} of the image ({ROI}, {' x '.join(map(str, self.roi.shape))})"
        by_image = self.facts.get("data", {}).get("rois", False)
        return "one for each image, in the column roi of the table of training images" if by_image else None

    @property
    def _fitted(self) -> Method:
        if self.method is None:
            raise SettingsError(f"The {self.name} detector is not fitted yet: call fit() or load one.")
        return self.method

    @torch.inference_mode(False)  # weights made in inference mode could not be trained
    def _build(self, shape: tuple[int, ...]) -> Method:
        device = torch.device("cpu")
        with caller_generators_kept(device):
            seed_generators(self.train.seed, device)
            method = get(self.name)(self.settings, shape)
        if (
            self.train.channels_last and len(shape) == 3
        ):  # scoring is faster too, and a loaded method rounds like a fitted one
            method.to(memory_format=torch.channels_last)
        return method

    def _read(
        self,
        data: DataSet,
        spill: Path,
        processes: Processes,
        on_decode: Callable[[int, int], None] | None,
    ) -> _Read:
        """The images to train on, once for all processes of the node: those map the file ``spill``."""
        kinds, images = survey(data, on_decode)
        planned, rest, carved = self._divide(data, kinds)
        training = data.remembering(images).subset(rest)
        preprocess = planned.preprocess.fit(training.read, len(training), planned.constants(rest), training.imaged)
        self.preprocess = preprocess  # which the size of tiles depends on
        views, memory = self._view_settings(scoring=False), None if processes.per_node == 1 else 0
        x, origin, failed = decode(training, preprocess, spill, views=views, memory=memory, on_progress=on_decode)
        content = digest_of(x) if processes.nodes > 1 else ""
        return _Read(planned, carved, preprocess, x, rest[origin], failed, content)

    def _check_alike(self, processes: Processes, read: _Read) -> None:
        """Raises an error unless all processes fit with the same settings on the same images."""
        settings = processes.every(json.dumps(self.all_settings(), sort_keys=True, default=str))
        for rank, one in enumerate(settings):
            if one != settings[0]:
                names = [name for name, value in json.loads(settings[0]).items() if json.loads(one).get(name) != value]
                raise SettingsError(
                    f"fit expects the same settings in all processes, got other ones of {', '.join(names) or 'the method'} in "
                    f"process {rank} than in process 0: start torchrun with the same command on all nodes."
                )
        contents = processes.every(read.content)
        for rank, content in enumerate(contents):
            if content != contents[0]:
                raise DataError(
                    f"fit expects the same images on all nodes, got other ones in process {rank} than in process 0: give "
                    "all nodes the same data."
                )

    def _divide(self, data: DataSet, kinds: Sequence[Kind | str]) -> tuple[Plan, Indices, Indices]:
        """What to do with normal images of these kinds, and the positions of those to train on and to calibrate with."""
        planned = plan(
            data,
            kinds,
            Preprocess(self.input.preprocess, self.input.size, plane=self.input.slices != "none"),
            self.augment,
            tiled=self.input.tile is not None,
            slices=self.input.slices,
            max_skipped=self.input.max_skipped,
        )
        if not self.decision.calibration:
            return planned, planned.kept, planned.kept[:0]
        cases = [data.items[i].case for i in planned.kept]
        rest, carved = hold_out(cases, self.decision.calibration, seed=self.train.seed)
        if not len(carved):
            number = len(set(cases))
            what = f"are all of one case ({cases[0]})" if number == 1 else f"are of {number} cases of unequal sizes"
            raise DataError(
                f"{data.name}: expected normal images to hold out for calibration, of other cases than those trained on, but "
                f"the {len(cases)} normal images {what}. Add images of other cases, name cases by the column case of a table, "
                "or train without calibration (calibration=0)."
            )
        return planned, planned.kept[rest], planned.kept[carved]

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

    def _hold_out(self, x: Float32 | DiskImages, cases: Sequence[str], fraction: float) -> tuple[Any, Float32 | None]:
        """Training images, and a held-out fraction where a stage stops early or concludes on them; whole cases."""
        if not any(stage.early_stop or stage.finalise for stage in self._fitted.stages()):
            return torch.from_numpy(x) if isinstance(x, np.ndarray) else x, None
        kept, carved = hold_out(cases, fraction, minimum=1, seed=self.train.seed + 1)
        if isinstance(x, DiskImages):
            return x.subset(kept), x[carved]
        return torch.from_numpy(x[kept]), x[carved]

    def _remember(
        self, data: DataSet, count: int, planned: Plan, summary: FitSummary, failed: Sequence[Failure]
    ) -> None:
        """``count``: images that were trained on. ``failed``: images that could not be used although they were planned."""
        calibration = self.calibration
        self.facts = {
            "data": {
                "name": data.name,
                "count": count,
                "held_out": 0 if calibration is None else calibration.count,
                "fingerprint": data.fingerprint(),
                "medical": data.is_medical,
                "scheme": data.scheme,
                **({"rois": True} if data.has_rois else {}),
                "failed": [[one.path, one.reason] for one in (*planned.failed, *failed)],
                "unused": np.setdiff1d(np.arange(len(data)), planned.kept).tolist(),
            },
            "fit": vars(summary).copy(),
            "versions": versions(),
        }


def load(folder: Path | str, engine: str | None = None) -> Detector:
    """Read a fitted detector from a model folder, or from one that export wrote; see :meth:`Detector.load`."""
    return Detector.load(folder, engine)


@dataclass(frozen=True)
class Outlook:
    """What a fit would do: numbers of images to train on and to calibrate with, (C, *spatial) as the method sees them (None:
    several), and images to skip."""

    train: int
    held_out: int
    shape: tuple[int, ...] | None
    skipped: tuple[Failure, ...]


def outlook(data: DataSet, kinds: Sequence[Kind | str], detector: Detector | None = None) -> Outlook:
    """What ``detector.fit`` (default settings unless given) would do with a set whose images are of these kinds.

    Raises DataError where it would.
    """
    detector = detector or Detector()
    places = {item.path: i for i, item in enumerate(data.items)}
    normal = normal_training_images(with_split(data, detector.train.seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NormalcyWarning)  # few images for calibration
        planned, rest, carved = detector._divide(normal, [kinds[places[item.path]] for item in normal.items])
    return Outlook(len(rest), len(carved), planned.shape, planned.failed)


# -- private ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """What a fit takes from its images."""

    planned: Plan
    carved: Indices
    """Positions of the images to calibrate with."""
    preprocess: Preprocess
    x: Float32 | DiskImages
    origin: Indices
    """Position in the data set of the image that each row of ``x`` comes from."""
    failed: list[Failure]
    content: str
    """Digest of ``x`` where it is to be compared with that of other nodes."""


@contextmanager
def _shared_folder(run: Path, processes: Processes) -> Iterator[Path]:
    """Where the decoded images go that do not stay in memory: of several processes, a temporary folder of each node."""
    if processes.count == 1:
        yield run
        return
    with temporary_folder() as folder:
        yield Path(folder)


@contextmanager
def _run_folder(run_dir: Path | str | None) -> Iterator[Path]:
    """The run folder, or one for the time of the fit; decoded images in it go with the fit, and so does an empty one."""
    with ExitStack() as stack:
        folder = Path(run_dir or stack.enter_context(temporary_folder()))
        try:
            yield folder
        finally:
            remove(folder / "images.raw")
            remove_empty(folder)  # nothing was trained


def _inside(map: Array | None, roi: Mask) -> Array | None:
    """The pixels of a region of interest: the false-positive rate is that of these."""
    return None if map is None else map[roi]


def _truth(data: DataSet, i: int, result: Result) -> Mask | None:
    """The mask of an image in its region of interest."""
    mask = data.mask(i)
    return mask if mask is None or result.roi is None else mask & result.roi


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
