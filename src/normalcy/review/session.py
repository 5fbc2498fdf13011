"""What a review shows: the rows of results folders, the images behind them, and statistics of what was decided."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normalcy.arrays import Array, Float32, Float64, Mask
from normalcy.data.dataset import DataSet
from normalcy.data.images import read_image, read_raw
from normalcy.data.slides import Slide, slide_files
from normalcy.data.volumes import Space, imaged, volume_space
from normalcy.errors import DataError
from normalcy.files import read_bytes, read_text
from normalcy.metrics import sampling
from normalcy.provenance import NOTICE
from normalcy.results.columns import Places
from normalcy.results.folder import MAPS, read_results, read_slides
from normalcy.results.inputs import reopen
from normalcy.results.labels import REVIEW, read_any_mask
from normalcy.results.names import NIFTI, readable
from normalcy.results.run import SlidesRun
from normalcy.review import masks, pixels, plan
from normalcy.review.labels import Known, by_image
from normalcy.review.queue import Queues
from normalcy.review.store import Decision, Store

RESTORED = (".png", ".tiff", ".npy", NIFTI)
KINDS = ("input", "restored", "map", "uncertainty", "truth")
IN_MEMORY = 2**28
"""Bytes of decoded images, and of thumbnails, that are kept."""


class Shown(NamedTuple):
    """An array of an image, and what the page must know of it."""

    array: Array
    size: tuple[int, ...]
    """Of the image itself, (H, W)."""


class Review:
    """One or several results folders of the same images, opened for review. The first gives the order and the folder."""

    def __init__(
        self,
        folders: Sequence[Path],
        data: Callable[[], DataSet] | None = None,
        *,
        slides: Path | None = None,
        read_only: bool = False,
        blind: bool = False,
    ) -> None:
        self.blind, self.read_only = blind, read_only
        self.slides: SlidesRun | None = None
        first = folders[0]
        if (first / "slides.csv").exists() and not (first / "scores.csv").exists():
            read, self.slides = read_slides(first)
            self.results = [read]
            if len(folders) > 1:
                raise DataError(f"{folders[1]}: slides are reviewed one results folder at a time.")
        else:
            self.results = [read_results(folder) for folder in folders]
        self.read = self.results[0]
        self.folder = first / REVIEW
        self.store = Store(self.folder, read_only)
        self.order = "score"
        """Of the queue at the start."""
        self.places = Places(self.read.paths)
        self._others = [self.read.paths.places_in(other.paths) for other in self.results[1:]]
        """Of each image in the other results; -1 where it is not there."""
        if self._others and not (self._others[0] >= 0).any():
            raise DataError(f"{folders[1]}: has no image of {first}; review results of the same images together.")
        self._slide_folder = slides
        self._slide_files: dict[int, Slide] = {}
        self._cache = _Cache(IN_MEMORY)
        self._thumbs = _Cache(IN_MEMORY // 4)
        self._opened = threading.Event()
        self._data: DataSet | None = None
        self._of_item: dict[str, int] = {}
        self.about_inputs = ""
        if self.slides is None:
            threading.Thread(target=self._open, args=(data,), name="inputs", daemon=True).start()
        else:
            self._opened.set()
        self.queues = Queues(
            self.read,
            self.store,
            self.places,
            blind,
            name=self.name,
            informative=self.informative,
            disagreement=self.disagreement,
        )
        self.places.find(one.image for one in self.store.after())
        self._plan: plan.Plan | None = None
        self._disagreement: Float64 | None = None

    # -- what the page knows

    @property
    def kind(self) -> str:
        """``image``, ``volume`` or ``slide``, by the first image that tells."""
        if self.slides is not None:
            return "slide"
        for i in range(min(len(self.read), 50)):
            file = self.read.file("maps", i, *MAPS)
            if file is not None:
                return "volume" if file.name.endswith(NIFTI) and self.is_volume(i) else "image"
        name = self.read.paths[0].lower() if self.read.paths else ""
        return "volume" if name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")) else "image"

    def facts(self) -> dict[str, Any]:
        """What holds for all images."""
        run = self.read.run
        limits = run.calibration
        span = (limits.map_range if limits is not None else None) or run.map_range
        facts = {
            "name": self.read.folder.resolve().name,
            "data": run.data.name,
            "method": run.model.method,
            "kind": self.kind,
            "count": len(self.read),
            "results": [read.folder.resolve().name for read in self.results],
            "methods": [read.run.model.method for read in self.results],
            "threshold": None if limits is None else limits.threshold,
            "rule": None if limits is None else limits.rule,
            "guaranteed": None if limits is None else limits.false_alarms,
            "pixel_threshold": None if limits is None else limits.pixel_threshold,
            "map_range": list(span) if span is not None else None,
            "extra": self.read.extra_maps(),
            "medical": run.data.medical,
            "notice": NOTICE if run.data.medical else "",
            "read_only": self.read_only,
            "blind": self.blind,
            "informative": self.slides is None and plan.possible(self.read),
            "scores": self.queues.about_scores(),
            "p": bool(np.isfinite(self.read.p_values).any()),
            "labels": bool((self.read.labels >= 0).any()),
            "types": [name for name in self.read.types.names if name],
            "anomalies": [name for name in self.read.types.among(self.read.labels == 1) if name],
        }
        if self.blind:
            facts |= dict.fromkeys(("threshold", "rule", "guaranteed", "pixel_threshold", "map_range", "scores"))
            facts |= {"extra": [], "results": [], "methods": [], "method": "", "types": [], "anomalies": []}
            facts |= {"informative": False, "p": False, "labels": False}
        return facts

    def name(self, i: int) -> str:
        """What the page calls an image; in a blind review not its path, which may tell the label."""
        return f"image {i + 1}" if self.blind else readable(self.read.paths[i])

    def rows(self, images: Iterable[int]) -> dict[str, Any]:
        """What the page shows of some images, as columns; without scores, labels and types in a blind review."""
        chosen = np.array([i for i in images if 0 <= i < len(self.read)], np.intp)
        columns: dict[str, Any] = {"path": [self.name(i) for i in chosen.tolist()]}
        if self.blind:
            return columns
        read = self.read
        cases = [read.cases[i] for i in chosen]
        columns["case"] = [None if case == read.paths[i] else readable(case) for case, i in zip(cases, chosen)]
        columns["score"] = _numbers(read.scores[chosen])
        columns["p"] = _numbers(read.p_values[chosen])
        columns["flagged"] = read.flagged[chosen].tolist()
        columns["label"] = read.labels[chosen].tolist()
        columns["type"] = [read.types[i] for i in chosen]
        columns["disagreement"] = None if len(self.results) < 2 else _numbers(self.disagreement()[chosen])
        columns["others"] = [
            _numbers(np.where(at[chosen] >= 0, other.scores[at[chosen]], np.nan))
            for other, at in zip(self.results[1:], self._others)
        ]
        return columns

    def disagreement(self) -> Float64:
        """(N,) in [0, 1]: the largest difference of an image's ranks in the results, as fractions of all images."""
        if self._disagreement is None:
            high, low = np.full(len(self.read), -np.inf), np.full(len(self.read), np.inf)
            for read, at in zip(self.results, [np.arange(len(self.read)), *self._others]):
                rank = np.empty(len(read))
                rank[np.argsort(read.scores, kind="stable")] = np.arange(len(read)) / max(len(read) - 1, 1)
                there = at >= 0
                high[there] = np.maximum(high[there], rank[at[there]])
                low[there] = np.minimum(low[there], rank[at[there]])
            self._disagreement = high - low
        return self._disagreement

    def informative(self) -> list[int]:
        """Images in the informative order, each once. Raises DataError where there is none."""
        if self.blind or self.sampling is None:
            raise DataError("the informative order needs a threshold that flags some images and not others.")
        drawn = dict.fromkeys(self.sampling.images)
        return list(self.places.find(drawn).values())

    def known(self, image: str) -> Known:
        """For the tables of labels; waits until the images are opened."""
        self._opened.wait(timeout=60)
        i = self.places.get(image, -1)
        case = self.read.cases[i] if i >= 0 and self.read.cases[i] != image else ""
        if self.slides is not None:
            file = next((one.path for one in self.slides.slides if one.name == image), "")
            return Known(file or image, bool(file), "", case)
        place = self._of_item.get(image)
        if self._data is None or place is None:
            return Known(image, False, "", case)
        source, item = self._data.source(place), self._data.items[place]
        is_file = source is not None and source.exists()
        path = str(source.absolute()) if is_file and source is not None else image
        return Known(path, is_file, "", case or ("" if item.case == image else item.case))

    # -- pixels

    def is_volume(self, i: int) -> bool:
        space = self.space(i)
        return space is not None and len(space.size) == 3

    def space(self, i: int) -> Space | None:
        """Where the voxels of a volume lie; by its map where the image itself is not there."""
        path = self.read.file("maps", i, *MAPS)
        if path is not None and path.name.endswith(NIFTI):
            space: Space = self._cache.get(("space", i), lambda: volume_space(read_bytes(path), path.name), 1000)
            return space
        place = self._place(i)
        return None if place is None or self._data is None else self._data.space(place)

    def dicom_space(self, i: int) -> Space:
        """Where the voxels of a DICOM image lie, with its files. Raises DataError for other images."""
        place = self._place(i)
        space = None if place is None or self._data is None else self._data.space(place)
        if space is None or not space.files:
            raise DataError("is no DICOM image, or is not found.")
        return space

    def array(self, i: int, kind: str, result: int = 0, reviewer: str = "") -> Array:
        """The whole array of an image. Raises DataError where there is none, or where it is hidden."""
        if not 0 <= i < len(self.read) or not 0 <= result < len(self.results):
            raise DataError("there is no such image.")
        if self.blind and kind not in ("input", "mask"):
            raise DataError("this review is blind: scores and maps are hidden.")
        if kind == "mask":
            return self.mask(i, reviewer)
        array: Array = self._cache.get((kind, i, result), lambda: self._array(i, kind, result))
        return array

    def image(self, i: int, kind: str, result: int = 0, reviewer: str = "", channel: int | None = None) -> Shown:
        """The array of a 2D image as it is drawn."""
        whole = self.array(i, kind, result, reviewer)
        if whole.ndim > 3:
            raise DataError("this is a volume; it is shown as such.")
        size = whole.shape[-2:]
        return Shown(pixels.plane(np.asarray(whole), channel), size)

    def volume(self, i: int, kind: str, result: int = 0, channel: int = 0) -> bytes:
        """A volume as NIfTI along the patient's axes."""
        space = self.space(i)
        if space is None:
            raise DataError("this image is no volume.")
        return pixels.volume(np.asarray(self.array(i, kind, result)), space, channel)

    def peak(self, i: int) -> tuple[int, ...] | None:
        """Where the map is largest, in the axes of the array."""
        if self.blind:
            return None
        try:
            values = self.array(i, "map")
        except DataError:
            return None
        return tuple(int(n) for n in np.unravel_index(int(np.nanargmax(values)), values.shape))

    def window(self, i: int) -> tuple[float, float]:
        """Values of a volume to show as black and white."""
        values = np.asarray(self.array(i, "input"))
        space = self.space(i)
        inside = values[0][imaged(values, space)] if space is not None and values.ndim == 4 else values
        inside = inside[np.isfinite(inside)] if inside.dtype.kind == "f" else inside
        low, high = np.percentile(
            inside[:: max(1, inside.size // 2**20)] if inside.ndim == 1 else inside, pixels.STRETCH
        )
        return float(low), float(high)

    def thumbnail(self, i: int) -> bytes:
        """A small PNG; of the input, or else of the map."""
        if not 0 <= i < len(self.read):
            raise DataError("there is no such image.")
        thumbnail: bytes = self._thumbs.get(("thumb", i), lambda: self._thumbnail(i))
        return thumbnail

    def mask(self, i: int, reviewer: str) -> Mask:
        """The mask that a reviewer drew. Raises DataError where there is none."""
        last = self.store.of(self.read.paths[i], reviewer)
        if last is None or not last.mask:
            raise DataError("nothing is marked.")
        return masks.read(self.folder, last.mask)

    def spatial(self, i: int) -> tuple[int, ...]:
        """(H, W) or (z, y, x) of an image."""
        for kind in ("map", "input", "restored"):
            try:
                whole: Array = self._cache.get((kind, i, 0), partial(self._array, i, kind, 0))
            except DataError:
                continue
            return whole.shape if kind == "map" else whole.shape[1:] if whole.ndim > 2 else whole.shape
        raise DataError("neither the image nor its map is there, so its size is not known.")

    def shown_size(self, i: int) -> tuple[int, ...]:
        """The size in which the page draws: that of the image, or of every second (third ...) pixel of a large one."""
        size = self.spatial(i)
        step = pixels.step_of(size) if len(size) == 2 else 1
        return tuple(-(-n // step) for n in size)

    # -- deciding

    def decide(self, decision: Decision, mask: bytes | None) -> Decision:
        """Write a decision and its mask (None: as it was); both are on disk when this returns."""
        i = self.places.get(decision.image)
        if i is None:
            raise DataError("there is no such image.")
        decision = decision.checked()
        before = self.store.of(decision.image, decision.reviewer)
        name = before.mask if before is not None else ""
        if mask is not None:
            size = self.spatial(i)
            values = pixels.unpacked(mask, self.shown_size(i), pixels.LARGEST_SIDE**2 * 16)
            if values.shape != size:
                step = pixels.step_of(size)
                values = values.repeat(step, 0).repeat(step, 1)[: size[0], : size[1]]
            space = self.space(i) if len(size) == 3 else None
            name = masks.name_of(decision.reviewer, self.read.files[i], space is not None)
            name = masks.write(self.folder, name, values, space)
        return self.store.add(Decision(**{**vars(decision), "mask": name}))

    # -- statistics

    @property
    def sampling(self) -> plan.Plan | None:
        """The draws of the informative order; None without a threshold that flags some images and not others."""
        if self._plan is None and self.slides is None:
            self._plan = plan.of(self.read, self.folder, write=not self.read_only)
        return self._plan

    def estimates(self) -> dict[str, Any] | None:
        """Rates of all images, by those reviewed in the informative order."""
        if self.sampling is None or self.blind:
            return None
        labels = {image: _label(own) for image, own in by_image(self.store.current()).items()}
        found = plan.estimate(self.sampling, self.read, labels)
        if isinstance(found, str):
            return {"reason": found}
        rates = {
            name: _interval(getattr(found, name))
            for name in ("precision", "recall", "false_positive_rate", "anomalous")
        }
        return {**rates, "draws": found.draws, "images": found.images}

    def agreement(self) -> dict[str, Any]:
        """Of each pair of reviewers: images that both decided, a table of verdicts, Cohen's kappa, Dice of masks."""
        images = by_image(self.store.current())
        reviewers = sorted({one.reviewer for own in images.values() for one in own})
        pairs = []
        for k, first in enumerate(reviewers):
            for second in reviewers[k + 1 :]:
                both = []
                for own in images.values():
                    of = {one.reviewer: one for one in own}
                    if first in of and second in of:
                        both.append((of[first], of[second]))
                if both:
                    pairs.append(self._pair(first, second, both))
        return {"reviewers": reviewers, "pairs": pairs}

    # -- private

    def _pair(self, first: str, second: str, both: list[tuple[Decision, Decision]]) -> dict[str, Any]:
        words = ("normal", "anomalous", "unsure")
        counts = [[sum(a.verdict == x and b.verdict == y for a, b in both) for y in words] for x in words]
        self.places.find(a.image for a, _ in both)
        apart = [self.places[a.image] for a, b in both if a.verdict != b.verdict and a.image in self.places]
        overlaps = []
        for a, b in both:
            if a.mask and b.mask and a.image in self.places:
                try:
                    overlaps.append(
                        (self.places[a.image], dice(*(masks.read(self.folder, one.mask) for one in (a, b))))
                    )
                except (DataError, OSError):
                    continue
        return {
            "first": first,
            "second": second,
            "images": len(both),
            "counts": counts,
            "kappa": _finite(kappa(counts)),
            "apart": apart,
            "dice": _finite(float(np.mean([d for _, d in overlaps]))) if overlaps else None,
            "masks": [{"image": i, "dice": d} for i, d in sorted(overlaps, key=lambda one: one[1])],
        }

    def _open(self, data: Callable[[], DataSet] | None) -> None:
        try:
            if data is not None:
                opened: DataSet | None = data()
                about = "Inputs: the data set that was given."
            else:
                opened, about = reopen(self.read)
            if opened is not None:
                self._of_item = {readable(item.path): k for k, item in enumerate(opened.items)}
                if not any(path in self._of_item for path in self.read.paths):
                    about = f"{opened.name} has none of the images that were scored; name another with --data."
                    opened = None
            self._data, self.about_inputs = opened, about
        except (DataError, OSError) as error:
            self.about_inputs = str(error)
        finally:
            self._opened.set()

    @property
    def has_inputs(self) -> bool | None:
        """None as long as they are being opened."""
        if not self._opened.is_set():
            return None
        return self.slides is not None or self._data is not None

    def _place(self, i: int) -> int | None:
        self._opened.wait(timeout=600)
        return self._of_item.get(self.read.paths[i])

    def _array(self, i: int, kind: str, result: int) -> Array:
        if kind == "input":
            place = self._place(i)
            if place is None or self._data is None:
                raise DataError(f"the image is not there. {self.about_inputs}".strip())
            return self._data.read(place)
        read = self.results[result]
        at = i if result == 0 else int(self._others[result - 1][i])
        if at < 0:
            raise DataError("these results do not have the image.")
        if kind == "truth":
            path = read.file("masks", at, ".png", ".npy", NIFTI)
            if path is None:
                raise DataError("no mask is known.")
            return read_any_mask(path) if path.suffix == ".png" else np.asarray(read_raw(path) > 0)
        if kind == "restored":
            path = read.file("restored", at, *RESTORED)
            if path is None:
                raise DataError("there is no restored image.")
            return np.asarray(read_raw(path)) if path.suffix == ".npy" else read_image(path)
        folder = {"map": "maps", "uncertainty": "uncertainty"}.get(kind)
        if folder is None:
            if kind not in read.extra_maps():
                raise DataError("there is no such map.")
            folder = f"extra_maps/{kind}"
        path = read.file(folder, at, *MAPS)
        if path is None:
            raise DataError("there is no map; score with maps.")
        values = np.asarray(read_raw(path), np.float32)
        return np.nan_to_num(values)

    def _thumbnail(self, i: int) -> bytes:
        if self.slides is not None:
            return pixels.thumbnail(np.moveaxis(self.slide(i).overview(), -1, 0))
        try:
            whole = np.asarray(self._array(i, "input", 0))
            if whole.ndim == 4:
                peak = self.peak(i)
                whole = whole[:, peak[0] if peak is not None and len(peak) == 3 else whole.shape[1] // 2, ::-1]
            return pixels.thumbnail(whole)
        except (DataError, OSError):
            if self.blind:
                raise
            values = np.asarray(self.array(i, "map"))
            values = values if values.ndim == 2 else values[int(values.max((1, 2)).argmax())]
            span = self.read.run.map_range or (float(values.min()), float(values.max()))
            return pixels.map_thumbnail(values, span)

    # -- slides

    def slide(self, i: int) -> Slide:
        """Raises DataError where its file is not found."""
        if i not in self._slide_files:
            self._slide_files[i] = Slide(self._slide_path(i))
        return self._slide_files[i]

    def _slide_path(self, i: int) -> Path:
        name = self.read.paths[i]
        if self._slide_folder is not None:
            found = next((file for file in slide_files(self._slide_folder) if file.stem == name), None)
        else:
            written = next((one.path for one in self.slides.slides if one.name == name), "") if self.slides else ""
            found = Path(written) if written else None
        if found is None or not found.is_file():
            raise DataError(f"the slide {name} is not found; name its folder with --data.")
        return found

    def slide_file(self, i: int, name: str) -> Path | None:
        """A file that scoring wrote for a slide."""
        path = self.read.folder / self.read.files[i] / name
        return path if path.is_file() and path.resolve().is_relative_to(self.read.folder.resolve()) else None

    def heat(self, i: int) -> Float32:
        path = self.slide_file(i, "heatmap.tif")
        if path is None:
            raise DataError("there is no heat map.")
        return np.asarray(self._cache.get(("heat", i), lambda: np.asarray(read_image(path)[0], np.float32)), np.float32)

    def regions(self, i: int) -> list[dict[str, Any]]:
        """Regions of a slide above the pixel threshold: outer ring in its pixels, largest value; highest first."""
        path = self.slide_file(i, "regions.geojson")
        if path is None:
            return []
        found: list[dict[str, Any]] = []
        try:
            for one in json.loads(read_text(path))["features"]:
                ring = [[float(x), float(y)] for x, y in one["geometry"]["coordinates"][0]]
                found.append({"ring": ring, "peak": float(one["properties"]["measurements"]["largest"])})
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError("the regions of the slide are damaged; score it again.") from None
        return sorted(found, key=lambda one: -one["peak"])[:500]


def kappa(counts: Sequence[Sequence[int]]) -> float:
    """Cohen's kappa of a square table of counts (Cohen 1960); NaN where both always say the same one thing.

    >>> kappa([[20, 5], [10, 15]])
    0.4
    """
    table = np.asarray(counts, np.float64)
    total = table.sum()
    if not total:
        return math.nan
    agreed = np.trace(table) / total
    chance = float(table.sum(0) @ table.sum(1)) / total**2
    return math.nan if chance >= 1 else round(float((agreed - chance) / (1 - chance)), 12)


def dice(a: Mask, b: Mask) -> float:
    """2 |a and b| / (|a| + |b|); 0 for masks of different sizes."""
    if a.shape != b.shape:
        return 0.0
    return 2 * int((a & b).sum()) / max(int(a.sum()) + int(b.sum()), 1)


# -- private -----------------------------------------------------------------------------------------------------------


def _label(decisions: Sequence[Decision]) -> int | None:
    from normalcy.review.labels import consensus

    return consensus(decisions).label


def _numbers(values: Array) -> list[float | None]:
    """Rounded to what a page shows; null where not finite."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _interval(found: sampling.Estimate) -> dict[str, float | None]:
    return {name: _finite(getattr(found, name)) for name in ("value", "low", "high")}


@dataclass
class _Cache:
    """The arrays and bytes last used, up to a number of bytes."""

    most: int

    def __post_init__(self) -> None:
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._size, self._lock = 0, threading.Lock()

    def get(self, key: Any, make: Callable[[], Any], size: int | None = None) -> Any:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = value
                self._size += _bytes(value, size)
            while self._size > self.most and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._size -= _bytes(old, None)
        return value


def _bytes(value: Any, size: int | None) -> int:
    return (
        size
        if size is not None
        else int(getattr(value, "nbytes", 0)) or (len(value) if isinstance(value, bytes) else 1000)
    )
