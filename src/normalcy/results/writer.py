"""The one way into a results folder: no file outside it, no input overwritten; files of images written beside scoring."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

import numpy as np

from normalcy.arrays import Array
from normalcy.data.dataset import DataSet, Failure
from normalcy.data.images import encode_npy, encode_png
from normalcy.data.volumes import split_name, write_volume
from normalcy.errors import DataError, SettingsError
from normalcy.files import is_inside, write_bytes, write_new, writing_text
from normalcy.results.names import NIFTI, file_names, harmless, named
from normalcy.results.run import MapRange
from normalcy.scoring import Result

Content = bytes | memoryview
AT_ONCE = 2**28
"""Bytes of results that may wait for being written; scoring waits when there are more."""


class Writer:
    """Gives the places of files in a folder, and writes them whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = folder.resolve()
        self._inside: set[str] = set()
        """Folders that are known to lie inside."""

    def path(self, *parts: str) -> Path:
        """A place inside the folder. Raises DataError for one outside."""
        path = self.folder.joinpath(*parts)
        # Links inside the folder count as what they point to.
        if ".." in path.parts[len(self.folder.parts) :] or not path.resolve().is_relative_to(self._real):
            raise DataError(f"{'/'.join(parts)}: would be written outside {self.folder}; rename the image.")
        return path

    def bytes(self, name: str, data: bytes) -> Path:
        path = self.path(name)
        write_bytes(path, data)
        return path

    def new(self, name: str, *parts: Content) -> None:
        """A file of an image, which is there once, in a folder that is not yet seen (see :func:`~normalcy.files.write_new`)."""
        above, _, last = name.rpartition("/")
        if above not in self._inside:
            self.path(name)
            self._inside.add(above)
        elif last == "..":
            raise DataError(f"{name}: would be written outside {self.folder}; rename the image.")
        write_new(self.folder / name, *parts)

    def array(self, name: str, values: Array) -> Path:
        """As ``.npy``."""
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return self.bytes(name, buffer.getvalue())

    def csv(self, name: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
        text = io.StringIO()
        csv.writer(text).writerows([head, *(map(_cell, row) for row in rows)])
        return self.bytes(name, text.getvalue().encode("utf-8"))

    @contextmanager
    def table(self, name: str, head: Sequence[str]) -> Iterator[Callable[[Sequence[object]], None]]:
        """A table that grows row by row; its file appears at the end, if there is a row."""
        file: TextIO | None = None
        with ExitStack() as stack:

            def add(row: Sequence[object]) -> None:
                nonlocal file
                if file is None:
                    file = stack.enter_context(writing_text(self.path(name)))
                    csv.writer(file).writerow(head)
                csv.writer(file).writerow(map(_cell, row))

            yield add


class ImageNames:
    """Of the images of a data set, by path: ``files``, base names of their files, and ``places``, positions in the set."""

    def __init__(self, data: DataSet) -> None:
        paths = [item.path for item in data.items]
        self.files: Mapping[str, str] = dict(zip(paths, file_names(paths)))
        self.places: Mapping[str, int] = {path: i for i, path in enumerate(paths)}


class ImageWriter:
    """Maps, restored images and masks of a run, in threads, while the next images are scored.

    ``maps``: of which images anything is written but the mask. ``span``: the common range in which maps are shown; None: that of
    all maps of the run. ``incomplete`` lists images of which something is missing.
    """

    def __init__(
        self,
        writer: Writer,
        data: DataSet,
        maps: bool | Callable[[Result], bool],
        span: MapRange | None,
        names: ImageNames | None = None,
    ) -> None:
        self.writer, self.data, self.maps, self.span = writer, data, maps, span
        self.names = names or ImageNames(data)
        self.incomplete: list[Failure] = []
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._held = 0
        self._lock = threading.Lock()
        self._range_of_all = span is None

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def add(self, result: Result) -> None:
        """Write what belongs to an image; waits where too much is waiting."""
        if self.maps is False:
            return
        arrays = (result.map, result.restored, result.uncertainty, *result.extra_maps.values())
        size = sum(array.nbytes for array in arrays if array is not None)
        self._waiting.append((self._pool.submit(self._write, result), size))
        self._held += size
        while self._waiting and (self._held > AT_ONCE or self._waiting[0][0].done()):
            self._finish_first()

    def finish(self) -> None:
        """Wait for all files."""
        while self._waiting:
            self._finish_first()
        self.incomplete.sort(key=lambda one: self.names.places[one.path])

    def _finish_first(self) -> None:
        future, size = self._waiting.popleft()
        future.result()
        self._held -= size

    def _write(self, r: Result) -> None:
        base = self.names.files[r.path]
        steps: list[Callable[[], None]] = []
        if self.maps is True or (callable(self.maps) and self.maps(r)):
            steps.append(lambda: self._write_arrays(base, r))
        if self.data.has_masks and r.item.label != 0:
            steps.append(lambda: self._write_mask(base, r))
        for step in steps:
            try:
                step()
            except DataError as error:  # the image has its score; the rest of the set must not suffer
                with self._lock:
                    self.incomplete.append(Failure(r.path, str(error)))

    def _write_arrays(self, base: str, r: Result) -> None:
        """Of a volume all as NIfTI with the axes, shape and affine of its file; of other images as .npy and pictures."""
        maps = {"maps": r.map, "uncertainty": r.uncertainty}
        maps |= {f"extra_maps/{name}": values for name, values in r.extra_maps.items()}
        for kind, values in maps.items():
            if values is not None and r.space is not None:
                write_volume(self.writer.path(kind, named(base, NIFTI)), values, r.space)
            elif values is not None:
                self.writer.new(f"{kind}/{named(base, '.npy')}", *encode_npy(values))
        if self._range_of_all and r.map is not None and r.map.ndim == 2:
            low, high = float(r.map.min()), float(r.map.max())
            with self._lock:
                self.span = (low, high) if self.span is None else (min(low, self.span[0]), max(high, self.span[1]))
        if r.restored is not None and r.space is not None:
            write_volume(self.writer.path("restored", named(base, NIFTI)), r.restored, r.space, like_file=True)
        elif r.restored is not None:
            self._write_restored(base, r.restored)

    def _write_restored(self, base: str, image: Array) -> None:
        """PNG for what PNG holds, TIFF for other bit depths and channels, .npy for volumes; never another value range."""
        if image.ndim == 3 and image.dtype == np.uint8 and len(image) in (1, 3, 4):
            pixels = np.moveaxis(image, 0, -1) if len(image) > 1 else image[0]
            # Compressed it is smaller by a sixth of what is written with the map, and costs a tenth of the time of scoring by a
            # small autoencoder.
            self.writer.new(f"restored/{base}.png", encode_png(pixels, compress=False))
        elif image.ndim == 3:
            import tifffile

            buffer = io.BytesIO()
            tifffile.imwrite(
                buffer, image if len(image) > 1 else image[0], photometric="minisblack", compression="zlib"
            )
            self.writer.new(f"restored/{base}.tiff", buffer.getvalue())
        else:
            self.writer.array(f"restored/{base}.npy", image)

    def _write_mask(self, base: str, r: Result) -> None:
        """The mask of an image, unless it is empty; never one of another size than the image's."""
        i = self.names.places[r.path]
        mask = self.data.mask(i)
        if mask is None or not mask.any():
            return
        size = r.map.shape if r.map is not None else self.data.size(i)
        if mask.shape != size:
            raise DataError(f"its mask has the size {mask.shape}, expected that of the image, {size}; mend the mask.")
        if r.space is not None and mask.shape == r.space.size:
            space = replace(r.space, dtype=np.dtype(np.uint8), scale=None)
            write_volume(self.writer.path("masks", named(base, NIFTI)), mask, space, like_file=True)
        elif mask.ndim == 2:
            image = np.where(mask, 255, 0).astype(np.uint8)
            self.writer.new(f"masks/{named(base, '.png')}", encode_png(image))
        else:
            self.writer.new(f"masks/{named(base, '.npy')}", *encode_npy(mask))


def refuse_inputs(out: Path, data: DataSet) -> None:
    """Raise SettingsError where an image of ``data`` lies in the folder ``out``, which will be replaced."""
    if not out.is_dir():
        return
    inside = {_identity(Path(folder, name)) for folder, _, names in os.walk(out) for name in names} - {None}
    if not inside:
        return
    for i in range(len(data)):
        source = data.source(i)
        if source is None:
            continue
        file = Path(split_name(str(source))[0])
        if _identity(file) in inside or is_inside(file, out):
            raise SettingsError(f"{out} holds {file}, an image to score: choose another folder for the results.")


# -- private -----------------------------------------------------------------------------------------------------------


def _cell(value: object) -> object:
    return harmless(value) if isinstance(value, str) else value


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
