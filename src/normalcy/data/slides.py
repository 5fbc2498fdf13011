"""Whole-slide images as tiles: where there is tissue, at a chosen scale, read one at a time.

A set of tiles is named as ``slides:PATH``, a slide or a folder of them, with options after commas, for example
``slides:biopsies,tile=256,mpp=1,most=200,tissue=0.5,stain=macenko``:

``tile``    side in pixels (256)
``mpp``     micrometres per pixel; the slide's own finest level unless given, which every slide must then say, and reach
``most``    tiles per slide, drawn without overlap (all)
``tissue``  fraction of a tile that must be tissue (0.5): darker than Otsu's threshold of the slide's overview, and not
            black, which is what was not scanned
``stain``   none, macenko or vahadane, for each tile (none)

Tiles of one slide are one case, so that no split divides a slide. Formats: those of tiffslide (SVS, NDPI, SCN, Philips and
generic tiled TIFF ...).
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from normalcy.arrays import Array, Mask
from normalcy.config import build, parse_settings
from normalcy.data.dataset import DataSet, Item
from normalcy.data.foreground import otsu
from normalcy.data.images import check_pages
from normalcy.data.stain import BLACK, Stain, normalise
from normalcy.data.stores import Folder
from normalcy.errors import DataError, Reason
from normalcy.files import open_regular

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif")
_FINEST = 0.95
"""Least mpp that is asked for, in that of the slide: scanners of one magnification differ by a few percent."""
_PAGES = 1000
"""Of a file: levels, label, macro picture."""
_LARGEST = 2**40
"""Pixels of a slide: a million by a million."""
_OVERVIEW = 1024  # pixels along the longer side of the picture that tissue is looked for in


@dataclass(frozen=True)
class TileSettings:
    """How tiles are taken from slides."""

    tile: int = 256
    """Side of a tile in pixels."""
    mpp: float | None = None
    """Micrometres per pixel; none: the finest level of the slide."""
    most: int | None = None
    """Tiles per slide, at random and the same each time; none: all."""
    tissue: float = 0.5
    """Fraction of a tile that must be tissue."""
    stain: Stain = "none"

    def __post_init__(self) -> None:
        if self.tile < 8 or (self.mpp or 1) <= 0 or (self.most or 1) < 1 or not 0 <= self.tissue <= 1:
            raise DataError(
                "slides: expected tile of at least 8, mpp and most positive and tissue in [0, 1], "
                f"got {self.tile}, {self.mpp}, {self.most} and {self.tissue}."
            )


class Tile(NamedTuple):
    """Place of the upper left corner in pixels of the finest level."""

    x: int
    y: int


@dataclass
class Slide:
    """A slide and how it is tiled; opened when first used, once in each thread."""

    path: Path
    settings: TileSettings = field(default_factory=TileSettings)

    def __post_init__(self) -> None:
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def _file(self) -> Any:
        if not hasattr(self._local, "file"):
            try:
                import tiffslide
            except ImportError:
                raise DataError('Slides need tiffslide; pip install "normalcy[medical]".') from None
            with open_regular(self.path) as opened, self._faults():  # a pipe would be waited for
                if self.path.suffix.lower() != ".ndpi":  # whose offsets may have more than 32 bits
                    with mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
                        check_pages(data, _PAGES)
                file = tiffslide.TiffSlide(self.path)
                for page in islice(file.ts_tifffile.pages, _PAGES):
                    if math.prod(page.chunked) > len(page.dataoffsets):  # else each missing tile is looked for
                        raise Reason("claims more tiles than it has")
                self._local.file = file
        return self._local.file

    @contextmanager
    def _faults(self, what: str = "cannot be read as a slide (its header or pixels are damaged)") -> Iterator[None]:
        """tiffslide reads headers when they are asked for, and meets damaged ones with errors of every type."""
        try:
            yield
        except DataError:
            raise
        except Exception:
            raise DataError(f"{self.path}: {what}; replace or remove the file.") from None

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the finest level."""
        with self._faults():
            width, height = (int(n) for n in self._file.dimensions)
        if not 0 < width * height <= _LARGEST:
            raise DataError(
                f"{self.path}: claims {width:,} x {height:,} pixels, at most {_LARGEST:,} are read; replace or remove the file."
            )
        return width, height

    @cached_property
    def mpp(self) -> float | None:
        """Micrometres per pixel of the finest level, where the file says."""
        with self._faults():
            value = self._file.properties.get("tiffslide.mpp-x")
            return float(value) if value is not None and 0 < float(value) < math.inf else None

    @cached_property
    def downsample(self) -> float:
        """Pixels of the finest level in one of a tile."""
        if self.settings.mpp is None:
            return 1.0
        if not self.mpp:
            raise DataError(
                f"{self.path}: does not say its micrometres per pixel; leave mpp out or add it to the file."
            )
        asked = self.settings.mpp / self.mpp
        if asked < _FINEST:
            raise DataError(
                f"{self.path}: expected mpp of at least the {self.mpp:.4g} micrometres per pixel of its finest level, got "
                f"{self.settings.mpp:g}; choose one that all slides have."
            )
        return asked

    @cached_property
    def tissue(self) -> Mask:
        """Where there is tissue in an overview of the slide, (rows, columns). Black is what the scanner did not scan."""
        with self._faults():
            overview = self._overview()
        scanned = overview.max(axis=2) > BLACK
        darkness = 255.0 - overview.min(axis=2)  # coloured or dark: some channel is low
        if not scanned.any() or np.ptp(darkness[scanned]) <= 8:
            return np.zeros(darkness.shape, bool)
        return np.asarray((darkness > otsu(darkness[scanned])) & scanned)

    def _overview(self) -> Array:
        """The whole slide, uint8 (rows, columns, 3), at most about 1,024 pixels long."""
        file = self._file
        level = file.get_best_level_for_downsample(max(self.size) / _OVERVIEW)
        (width, height), down = file.level_dimensions[level], file.level_downsamples[level]
        step = -(-max(width, height) // _OVERVIEW)
        strips = []
        for top in range(0, height, 64 * step):  # in strips: a file without coarse levels must not fill the memory
            region = (0, round(top * down)), level, (width, min(64 * step, height - top))
            strips.append(np.asarray(Image.fromarray(file.read_region(*region, as_array=True)[..., :3]).reduce(step)))
        return np.concatenate(strips)

    def tiles(self, cover: bool = False) -> list[Tile]:
        """Tiles side by side with enough tissue; ``most`` of them. What is left over at the right and lower border, less than a
        tile, is left out; with ``cover`` it is in tiles that end at the border and overlap their neighbours."""
        side = self.settings.tile * self.downsample
        width, height = self.size
        share = np.array(self.tissue, np.float64)
        places = []
        for y in _starts(height, side, cover):
            for x in _starts(width, side, cover):
                top, left = (int(start * n / full) for start, n, full in zip((y, x), share.shape, (height, width)))
                bottom, right = (
                    max(int((start + side) * n / full), first + 1)
                    for start, n, full, first in zip((y, x), share.shape, (height, width), (top, left))
                )
                if share[top:bottom, left:right].mean() >= self.settings.tissue:
                    places.append(Tile(round(x), round(y)))
        if self.settings.most is not None and len(places) > self.settings.most:
            places = sorted(random.Random(0).sample(places, self.settings.most))
        return places

    def read(self, tile: Tile) -> Array:
        """uint8 (3, tile, tile)"""
        with self._faults(f"the tile at {tile.x}, {tile.y} cannot be read (its pixels are damaged)"):
            level = self._file.get_best_level_for_downsample(self.downsample + 1e-6)
            side = max(1, round(self.settings.tile * self.downsample / self._file.level_downsamples[level]))
            pixels = np.asarray(self._file.read_region((tile.x, tile.y), level, (side, side), as_array=True))[..., :3]
        if side != self.settings.tile:
            again = (self.settings.tile,) * 2
            pixels = np.asarray(Image.fromarray(pixels).resize(again, Image.Resampling.BILINEAR, reducing_gap=2))
        return normalise(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), self.settings.stain)


def open_slides(spec: str) -> DataSet:
    """The tiles that ``PATH,option=value,...`` stands for, see this module. Raises DataError where there are none."""
    path, *options = spec.split(",")
    root = Path(path).expanduser()
    files = slide_files(root)
    base = root.parent if root.is_file() else root
    return open_files(files, [file.relative_to(base).as_posix() for file in files], options, root.stem)


def open_files(files: Sequence[Path], names: Sequence[str], options: Sequence[str], name: str = "slides") -> DataSet:
    """The tiles of these slides, which are called ``names``; ``options`` as above."""
    settings = build(TileSettings, parse_settings(options), "slides")
    return tiles_of([Slide(file, settings) for file in files], names, name)


def slide_files(path: Path) -> list[Path]:
    """A slide, or the slides in a folder and its folders. Raises DataError where there are none."""
    files = [path]
    if not path.is_file():
        files = sorted(path / name for name in Folder(path).names() if name.lower().endswith(SLIDE_SUFFIXES))
    if not files:
        raise DataError(f"{path}: expected a slide or a folder with some ({' '.join(SLIDE_SUFFIXES)}), got none.")
    return files


def _starts(length: int, side: float, cover: bool) -> list[float]:
    """Where tiles of a side begin along a length.

    >>> _starts(100, 30.0, False), _starts(100, 30.0, True), _starts(20, 30.0, True)
    ([0.0, 30.0, 60.0], [0.0, 30.0, 60.0, 70.0], [])
    """
    whole = int(length // side)
    starts = [k * side for k in range(whole)]
    return [*starts, float(math.floor(length - side))] if cover and whole and length - whole * side >= 1 else starts


def tiles_of(slides: Sequence[Slide], names: Sequence[str], name: str, cover: bool = False) -> DataSet:
    """A data set of the tiles of slides (``cover``: see :meth:`Slide.tiles`); each slide is a case.

    Slides that cannot be read are listed as ignored.
    """
    items, places, ignored, errors = [], [], [], []
    for k, (slide, slide_name) in enumerate(zip(slides, names)):
        try:
            found = slide.tiles(cover)
        except DataError as error:
            ignored.append(slide_name)
            errors.append(error)
            continue
        items += [Item(f"{slide_name}/x{tile.x}y{tile.y}", slide_name) for tile in found]
        places += [(k, tile) for tile in found]
    if errors and not items:
        raise errors[0]
    if not items:
        raise DataError(f"{name}: no slide that can be read has a tile with enough tissue; lower tissue or tile.")

    def read(i: int) -> Array:
        k, tile = places[i]
        return slides[k].read(tile)

    def size(i: int) -> tuple[int, ...]:
        return (slides[places[i][0]].settings.tile,) * 2

    def stamp(i: int) -> int:
        k, tile = places[i]
        return int(hashlib.sha256(f"{slides[k].path.stat().st_size},{tile}".encode()).hexdigest()[:8], 16)

    return DataSet(name, items, read, size=size, stamp=stamp, ignored=ignored, scheme=asdict(slides[0].settings))
