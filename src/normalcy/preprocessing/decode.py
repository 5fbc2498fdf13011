"""A data set decoded and preprocessed once, into memory or, beyond a limit, onto disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from normalcy.arrays import Float32, Indices
from normalcy.data.dataset import DataSet, Failure
from normalcy.errors import DataError
from normalcy.files import read_text, writing
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.views import ViewSettings

WHOLE = ViewSettings()


class DiskImages:
    """Images (N, C, *spatial), float32, in a raw file, read where indexed; pickled as the file's path.

    ``rows``: the images of the file that count, in this order; all by default.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], rows: Indices | None = None) -> None:
        self.path, self.stored, self.rows = path, shape, rows
        self.shape = shape if rows is None else (len(rows), *shape[1:])
        self._map = np.memmap(path, np.float32, "r", shape=shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Float32:
        return np.asarray(self._map[index if self.rows is None else self.rows[index]])

    def __reduce__(self) -> tuple[type[DiskImages], tuple[Path, tuple[int, ...], Indices | None]]:
        return DiskImages, (self.path, self.stored, self.rows)

    def subset(self, rows: Indices) -> DiskImages:
        """Some of the images, without a copy."""
        return DiskImages(self.path, self.stored, rows if self.rows is None else self.rows[rows])


def decode(
    data: DataSet,
    preprocess: Preprocess,
    spill: Path,
    *,
    views: ViewSettings = WHOLE,
    memory: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Float32 | DiskImages, Indices, list[Failure]]:
    """All images as one float32 array (N, C, *spatial), the item each row comes from, and the images that failed.

    Every image gives all the inputs (itself, tiles, slices) that ``views`` makes of it. Beyond ``memory`` bytes (default:
    a quarter of what is free) rows go to the file ``spill``. Images that cannot be read are listed and left out.

    Raises DataError when all are bad, or when the inputs differ in size.
    """
    limit = memory if memory is not None else free_memory() // 4
    rows: list[Float32] = []
    origin: list[int] = []
    failures: list[Failure] = []
    held, on_disk, shape = 0, 0, None
    file: BinaryIO | None = None
    with ExitStack() as opened:
        for i, result in enumerate(_in_order(data, lambda i: _one(data, preprocess, views, i))):
            if on_progress is not None:
                on_progress(i + 1, len(data))
            if isinstance(result, DataError):
                failures.append(Failure(data.items[i].path, str(result)))
                continue
            if shape is None:
                shape = result.shape[1:]
            if result.shape[1:] != shape:
                raise DataError(
                    f"{data.name} has images of several sizes: {data.items[i].path} gives {result.shape[1:]}, earlier ones "
                    f"{shape}. Give one size for all (size=256) or tiles of it (tile=256)."
                )
            rows.append(result)
            origin += [i] * len(result)
            held += result.nbytes
            if held > limit:
                file = file or opened.enter_context(writing(spill))
                for row in rows:
                    file.write(np.ascontiguousarray(row).data)
                    on_disk += len(row)
                rows, held = [], 0
        if shape is None:
            first = f": {failures[0].path}: {failures[0].reason}" if failures else ""
            raise DataError(f"None of the {len(data)} images of {data.name} can be used{first}")
        if file is None:
            return np.concatenate(rows), np.array(origin), failures
        for row in rows:
            file.write(np.ascontiguousarray(row).data)
            on_disk += len(row)
    return DiskImages(spill, (on_disk, *shape)), np.array(origin), failures


def free_memory() -> int:
    """Bytes of memory that new data can take."""
    with suppress(DataError):
        for line in read_text("/proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 1024**3  # no such file (macOS, Windows): assume a small machine


def _one(data: DataSet, preprocess: Preprocess, views: ViewSettings, i: int) -> Float32 | DataError:
    try:
        inputs, cuts = views.cut(preprocess, image := data.read(i), data.imaged(i, image))
        roi = data.roi(i, image.shape[1:])
        return (
            inputs if roi is None else inputs[views.cut_mask(roi, cuts[0]).any((1, 2))]
        )  # tiles outside are not learned
    except DataError as error:
        return error


def _in_order(data: DataSet, work: Callable[[int], Float32 | DataError]) -> Iterator[Float32 | DataError]:
    """``work`` for all items in threads, in order, with few waiting."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for i in range(len(data)):
            waiting.append(pool.submit(work, i))
            if len(waiting) > 4 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
