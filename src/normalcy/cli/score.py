"""Commands that score images: score, slides."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalcy.cli import options as o
from normalcy.cli.printing import complain, progress, record, show
from normalcy.errors import SettingsError

if TYPE_CHECKING:
    from normalcy.calibrate import Decision
    from normalcy.data.dataset import DataSet
    from normalcy.detector import Detector
    from normalcy.results.cluster import Shards
    from normalcy.results.run import Run, Scored


def score(
    model: o.Model,
    inputs: o.Inputs,
    out: o.Out,
    data_root: o.DataRoot = None,
    split: o.Split = None,
    score_name: o.Score = None,
    false_alarms: o.FalseAlarms = None,
    rule: o.Rule = "false_alarms",
    validation: o.Validation = None,
    tile: o.Tile = False,
    batch_size: o.BatchSize = 32,
    device: o.Device = None,
    engine: o.Engine = "auto",
    maps: o.Maps = True,
    shard: o.OneShard = None,
    ray: o.Ray = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Score images: scores.csv, anomaly maps, restored images.

    Maps and restored images have the size of their image, and its file format where that is medical.
    """
    from normalcy.data.splits import images_to_score
    from normalcy.results.predict import score_into
    from normalcy.results.run import read_run, read_shard
    from normalcy.results.writer import refuse_inputs

    o.at_least_one(batch_size, "--batch-size")
    part = None if shard is None else read_shard(shard)
    _refuse_both(shard, ray)
    detector = _load(model, device, engine, score_name)
    whole = _open_all(inputs, data_root)
    refuse_inputs(out, whole)
    data, chosen = images_to_score(whole, split, detector.train.seed)
    if split is None and chosen is None:
        _note_labels_without_splits(data)
    asked = engine
    engine = detector.use_engine(engine, images=len(data))  # of all shards: they take the same one
    decision, chosen_on = _decide(detector, rule, validation, inputs, data_root, false_alarms, data)
    how: dict[str, Any] = {
        "decision": decision,
        "spec": inputs[0] if len(inputs) == 1 else None,
        "split": chosen,
        "chosen_on": chosen_on,
        "tile": tile,
        "batch_size": batch_size,
        "maps": maps,
    }
    with progress("scoring") as on_progress:
        if ray is None:
            run = score_into(detector, data, out, shard=part, overwrite=overwrite, on_progress=on_progress, **how)
        else:
            from normalcy.results.cluster import score_on_cluster, shards_for

            opening = _OpenImages(model, device, asked, score_name, inputs, data_root, split, how)
            shards = _shards(opening, shards_for(len(data)), len(data), detector, device)
            score_on_cluster(shards, out, ray, overwrite=overwrite, on_progress=on_progress)
            run = read_run(out)
    _say_scored(run, engine, out)


@o.with_json
def slides(
    model: o.SlideModel,
    inputs: o.Slides,
    out: o.Out,
    set_: o.SlideSettings = [],  # noqa: B006
    quantile: o.Quantile = 0.95,
    cell: o.Cell = 32,
    batch_size: o.BatchSize = 32,
    device: o.Device = None,
    engine: o.Engine = "auto",
    shard: o.OneShard = None,
    ray: o.Ray = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Score whole-slide images: heat maps, regions, scores.

    A heat map is a pyramid TIFF; regions above the pixel threshold are GeoJSON.
    """
    from normalcy.config import parse_settings
    from normalcy.engines.cached import WORTH
    from normalcy.provenance import NOTICE
    from normalcy.results.cluster import score_on_cluster
    from normalcy.results.run import read_shard
    from normalcy.results.slides import open_for_scoring, read_slides, score_slides

    o.at_least_one(batch_size, "--batch-size")
    part = None if shard is None else read_shard(shard)
    _refuse_both(shard, ray)
    detector = _load(model, device, engine)
    how: dict[str, Any] = {"quantile": quantile, "cell": cell, "batch_size": batch_size}
    with progress("scoring tiles" if ray is None else "scoring slides") as on_progress:
        changed = parse_settings(set_)
        files = open_for_scoring(inputs, detector, changed)
        if ray is None:
            detector.use_engine(engine, images=WORTH)  # a slide has thousands of tiles
            scored, failed = score_slides(
                detector, files, out, shard=part, overwrite=overwrite, on_progress=on_progress, **how
            )
        else:
            opening = _OpenSlides(model, device, engine, inputs, changed, how)
            shards = _shards(opening, len(files), len(files), detector, device)
            score_on_cluster(shards, out, ray, overwrite=overwrite, on_progress=on_progress)
            scored, failed = read_slides(out)
    complain(NOTICE)
    for failure in failed:
        complain(f"Skipped {failure.reason}")
    for name, slide_score in scored:
        if not record("slides", slide=name, score=slide_score):
            show(f"{name}: {slide_score:.6g}")


def merge(results: o.Shards, out: o.Out, overwrite: o.Overwrite = False) -> None:
    """Merge the results of all shards into one results folder.

    It holds the rows, maps and images that one run would have written.
    """
    from normalcy.results.shards import merge as merge_shards

    count = merge_shards(results, out, overwrite)
    show(f"Merged {count} results of {len(results)} shards -> {out}")


# -- private ---------------------------------------------------------------------------------------------------------


def _say_scored(run: Run, engine: str, out: Path) -> None:
    from normalcy.provenance import NOTICE

    _say_faults(run.data)
    if run.data.medical:
        complain(NOTICE)
    show(f"Scored {run.data.count} images at {run.images_per_second:g} images/s by {engine} -> {out}")


def _say_faults(data: Scored) -> None:
    for word, faults, count in (
        ("Skipped", data.failed, data.failed_count),
        ("Incomplete", data.incomplete, data.incomplete_count),
    ):
        for one in faults:
            complain(f"{word} {one.path}: {one.reason}")
        if count:
            complain(f"{word} {count - len(faults)} more: see {'failed' if word == 'Skipped' else 'incomplete'}.csv.")


def _note_labels_without_splits(data: DataSet) -> None:
    if {0, 1} <= {*data.labels.tolist()}:
        complain(
            f"Note: {data.name} has no splits: all {len(data)} images are scored. If the model was fitted on these very data, "
            "--split test scores those that it has not seen."
        )


def _refuse_both(shard: str | None, ray: str | None) -> None:
    if shard is not None and ray is not None:
        raise SettingsError("--shard and --ray exclude each other: on a cluster, the shards are made and merged.")


@dataclass(frozen=True)
class _OpenImages:
    """What an actor of a cluster opens to score shards of a data set."""

    model: Path
    device: str | None
    engine: str
    score: str | None
    inputs: list[str]
    data_root: Path | None
    split: str | None
    how: dict[str, Any]
    """Of part_scorer()."""

    def __call__(self) -> Callable[..., int]:
        from normalcy.data.splits import images_to_score
        from normalcy.results.predict import part_scorer

        detector = _load(self.model, self.device, self.engine, self.score)
        data, _ = images_to_score(_open_all(self.inputs, self.data_root), self.split, detector.train.seed)
        detector.use_engine(self.engine, images=len(data))
        score = part_scorer(detector, data, **self.how)

        def score_shard(folder: Path, **words: Any) -> int:
            found = score(folder, whole_fingerprint=True, **words).data
            return found.count + (found.failed_count or len(found.failed))

        return score_shard


@dataclass(frozen=True)
class _OpenSlides:
    """What an actor of a cluster opens to score shards of slides."""

    model: Path
    device: str | None
    engine: str
    inputs: list[Path]
    changed: dict[str, Any]
    how: dict[str, Any]
    """Of score_slides()."""

    def __call__(self) -> Callable[..., int]:
        from normalcy.engines.cached import WORTH
        from normalcy.results.slides import open_for_scoring, score_slides

        detector = _load(self.model, self.device, self.engine)
        files = open_for_scoring(self.inputs, detector, self.changed)
        detector.use_engine(self.engine, images=WORTH)

        def score_shard(folder: Path, shard: Any, on_progress: Any) -> int:
            scored, failed = score_slides(detector, files, folder, shard=shard, **self.how)
            return len(scored) + len(failed)

        return score_shard


def _shards(
    opening: _OpenImages | _OpenSlides, count: int, images: int, detector: Detector, device: str | None
) -> Shards:
    from normalcy.provenance import versions
    from normalcy.results.cluster import Shards

    identity = [os.getcwd(), str(opening), images, detector.checksum, versions()]
    return Shards(opening, count, images, identity, gpu=device in (None, "auto") or str(device).startswith("cuda"))


def _load(model: Path, device: str | None, engine: str, score: str | None = None) -> Detector:
    """An exported graph is opened in ``engine``; of other models it is chosen when the number of images is known."""
    from normalcy.detector import load
    from normalcy.model_folder import is_exported

    detector = load(model, engine if is_exported(model) else None)
    detector = detector if device in (None, "auto") else detector.to(str(device))
    return detector if score is None else detector.with_score(score)


def _open_all(inputs: list[str], data_root: Path | None) -> DataSet:
    from normalcy.data.open import open_files

    return o.open_data(inputs[0], data_root, as_normal=True) if len(inputs) == 1 else open_files(inputs)


def _decide(
    detector: Detector,
    rule: str,
    validation: str | None,
    inputs: list[str],
    data_root: Path | None,
    false_alarms: float | None,
    data: DataSet,
) -> tuple[Decision | None, tuple[str, ...]]:
    """The decision, and the paths of images to score that choose it."""
    from normalcy.results.labels import shared

    if rule == "false_alarms":
        return detector.decide(false_alarms), ()
    if validation is None:
        raise SettingsError(f"--rule {rule} chooses its threshold on images of its own: give them with --validation.")
    if validation in inputs:
        raise SettingsError(
            "--validation must be other images than those scored: a threshold chosen on them proves nothing."
        )
    images = o.open_data(validation, data_root)
    both = shared(data, images)
    if len(both) == len(data):
        raise SettingsError(
            f"all {len(data)} images to score are in --validation {validation}: a threshold chosen on them proves nothing."
        )
    if both:
        complain(f"Note: {len(both)} of the images scored choose the threshold; evaluate does not count them.")
    return detector.decide_on(images, rule), tuple(data.items[i].path for i in both)
