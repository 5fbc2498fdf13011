"""Diffusion MRI as what diffusion does to each voxel: signals divided by the b=0 signal, inside of the brain.

``diffusion:DATA`` is any source of 4D volumes (a folder, the MVTec layout, a table, one file) with the b-values of each in a
file beside it: ``scan.nii.gz``, ``scan.bval`` and, where known, the directions in ``scan.bvec`` (the text files of FSL and
BIDS). Options follow after commas, for example ``diffusion:scans,b0=50,mask=none``:

``b0``    the largest b-value, in s/mm^2, that counts as b=0 (50)
``mask``  the brain: ``otsu`` (the default) finds it in the b=0 image, ``none`` takes all voxels that have a b=0 signal. A file
          ``scan_brain.nii.gz`` beside the volume, not 0 in the brain, goes before both.

An image then has float32 channels: 0 is the b=0 signal divided by itself, 1 in the brain and 0 outside; the others are
S / S0 of the diffusion-weighted images in the order of the file, S0 being the mean over all b=0 images; at least 0, and 0
outside of the brain. All volumes must have the same scheme: b-values within a tenth, directions (or their opposites) within
10 degrees. Directions are compared in the patient's space: those in ``.bvec`` are relative to the axes of the file, the first of
them turned round where the affine has a positive determinant (FSL's convention), so that volumes stored along other axes fit too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normalcy.arrays import Array, Float32, Float64, Mask
from normalcy.config import build, parse_settings
from normalcy.data.dataset import DataSet
from normalcy.data.foreground import otsu
from normalcy.data.formats import stem
from normalcy.data.images import read_mask
from normalcy.data.volumes import Space, split_name
from normalcy.errors import DataError
from normalcy.files import read_text

Scheme = list[list[float]]
"""b-value in s/mm^2 and unit direction, to the patient's right, front and head (zeros: none or unknown), of each
diffusion-weighted image, in the file's order."""
BRAIN = "_brain"
"""Ends the name of the file of a brain mask, after the name of its volume."""
_DEGREES, _SHARE = 10.0, 0.1  # how far directions and b-values of two volumes may lie apart


@dataclass(frozen=True)
class DiffusionSettings:
    """How signals become attenuations."""

    b0: float = 50.0
    """Largest b-value, in s/mm^2, that counts as b=0."""
    mask: Literal["otsu", "none"] = "otsu"
    """How the brain is found where no file tells."""


def open_diffusion(found: DataSet, options: Sequence[str] = ()) -> DataSet:
    """The attenuations of 4D volumes; ``options`` are key=value, see this module.

    A volume without b-values, or of another scheme than the first, is refused when it is read. Raises DataError where none has a
    scheme.
    """
    settings = build(DiffusionSettings, parse_settings(options), "diffusion")
    if found.root is None:
        raise DataError(
            f"diffusion expects volumes in files, got {found.name}; write them as NIfTI with .bval beside them."
        )
    paths = [found.root / split_name(item.path)[0] for item in found.items]
    brains = {path.parent / f"{stem(path.name)}{BRAIN}" for path in paths}
    kept = [i for i, path in enumerate(paths) if path.parent / stem(path.name) not in brains]
    data = found.subset(kept)
    paths = [paths[i] for i in kept]
    tables = [_attempt(path, settings.b0) for path in paths]

    def table(i: int) -> tuple[Mask, Float64]:
        """Of a volume; raises the DataError that its files met."""
        found = tables[i]
        if isinstance(found, DataError):
            raise found
        return found

    def scheme(i: int) -> Scheme:
        is_b0, rows = table(i)
        lies = data.space(i)
        return _rounded(rows[~is_b0] if lies is None else in_space(rows[~is_b0], lies.affine))

    first, reference = _first(scheme, len(paths))

    def read(i: int) -> Array:
        same_scheme(reference, scheme(i), str(paths[i]), str(paths[first]))
        is_b0, _ = table(i)
        signals = data.read(i)
        if len(signals) != len(is_b0):
            raise DataError(
                f"{paths[i]}: expected an image for each of its {len(is_b0)} b-values, got {len(signals)} images; "
                "correct the .bval file."
            )
        return attenuation(signals, is_b0, settings.mask, _brain_file(paths[i]))

    def space(i: int) -> Space | None:
        lies = data.space(i)
        weighted = int((~table(i)[0]).sum())
        return None if lies is None else replace(lies, rest=(1 + weighted,), dtype=None, scale=None)

    return DataSet(
        data.name,
        data.items,
        read,
        data.mask if data.has_masks else None,
        data.root,
        size=data.size,
        stamp=data.stamp,
        ignored=[file for file in data.ignored if not file.lower().endswith((".bval", ".bvec"))],
        space=space,
        scheme={"b0": [0], "scheme": reference},
    )


def attenuation(
    signals: Array, is_b0: Mask, mask: Literal["otsu", "none"] = "none", brain: Mask | None = None
) -> Float32:
    """Signals (N, *spatial) -> (1 + diffusion-weighted ones, *spatial), see this module; ``is_b0`` (N,) marks the b=0 images.

    >>> signals = np.array([[[100.0, 0.0]], [[50.0, 0.0]]])
    >>> attenuation(signals, np.array([True, False])).tolist()
    [[[1.0, 0.0]], [[0.5, 0.0]]]
    """
    base = signals[is_b0].mean(0, dtype=np.float64)
    if brain is None:
        brain = brain_mask(base) if mask == "otsu" else np.ones(base.shape, bool)
    inside = brain & (base > 0)
    weighted = np.maximum(signals[~is_b0], 0) * np.where(inside, 1 / np.where(inside, base, 1), 0)
    return np.concatenate([inside[None], weighted]).astype(np.float32)


def brain_mask(base: Float64) -> Mask:
    """The brain in a b=0 image (*spatial): the largest region above Otsu's threshold of the logarithm, holes filled.

    The logarithm, since liquor is many times as bright as the rest of the brain. A median of 3 voxels goes before; regions count
    as separate where they hang together by less than 5 voxels.
    """
    from scipy import ndimage

    smooth = ndimage.median_filter(np.log1p(np.maximum(base, 0)), size=3)
    if smooth.min() == smooth.max():
        return np.ones(base.shape, bool)
    bright = smooth > otsu(smooth)
    core = ndimage.binary_erosion(bright, iterations=2)
    regions, count = ndimage.label(core)
    if count:
        largest = regions == 1 + np.bincount(regions.ravel())[1:].argmax()
        bright = ndimage.binary_dilation(largest, iterations=3, mask=bright)
    return np.asarray(ndimage.binary_fill_holes(bright))


def read_scheme(volume: Path, largest_b0: float) -> tuple[Mask, Float64]:
    """Which images of a 4D volume are b=0, (N,), and (N, 4): the b-value and the unit direction of each, relative to the axes of
    the file as the text files beside it give them; zeros where there is none."""
    bval, bvec = (volume.parent / f"{stem(volume.name)}{suffix}" for suffix in (".bval", ".bvec"))
    if not bval.exists():
        raise DataError(f"{volume}: expected its b-values in {bval.name} beside it, got none; write that file.")
    b = _numbers(bval).ravel()
    is_b0 = b <= largest_b0
    if not is_b0.any() or is_b0.all():
        raise DataError(
            f"{bval}: expected b=0 images (b up to {largest_b0:g}) and others, got b from {b.min():g} to {b.max():g}; "
            "set b0 to the largest b-value that counts as b=0, as in diffusion:DATA,b0=100."
        )
    directions = np.zeros((len(b), 3))
    if bvec.exists():
        read = _numbers(bvec)
        read = read.T if read.shape == (3, len(b)) else read
        if read.shape != directions.shape:
            raise DataError(f"{bvec}: expected 3 numbers for each of {len(b)} b-values, got {_numbers(bvec).shape}.")
        lengths = np.linalg.norm(read, axis=1, keepdims=True)
        directions = np.nan_to_num(read / np.where(lengths > 0, lengths, 1))
    return is_b0, np.concatenate([b[:, None], directions], 1)


def in_space(rows: Float64, affine: Float64) -> Float64:
    """(N, 4) of :func:`read_scheme` with directions to the patient's right, front and head, by FSL's convention.

    Relative to the axes of the file, x turned round where the determinant of the affine is positive; of axes that are not
    orthogonal, to the nearest ones that are (https://fsl.fmrib.ox.ac.uk/fsl/docs/#/diffusion/dtifit).

    >>> in_space(np.array([[1000.0, 1.0, 0.0, 0.0]]), np.diag([2.0, 2.0, 2.0, 1.0])).tolist()
    [[1000.0, -1.0, 0.0, 0.0]]
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(axes)
    x = -1.0 if np.linalg.det(axes) > 0 else 1.0
    return np.concatenate([rows[:, :1], (rows[:, 1:] * [x, 1.0, 1.0]) @ (left @ right).T + 0.0], axis=1)


def same_scheme(expected: Sequence[Sequence[float]], got: Sequence[Sequence[float]], name: str, of: str) -> None:
    """Raises DataError where the channels of two volumes do not mean the same; unknown directions fit any."""
    if len(expected) != len(got):
        raise DataError(f"{name}: expected {len(expected)} diffusion-weighted images as in {of}, got {len(got)}.")
    a, b = np.array(expected), np.array(got)
    far = np.abs(a[:, 0] - b[:, 0]) > _SHARE * a[:, 0]
    known = a[:, 1:].any(1) & b[:, 1:].any(1)
    cosine = np.abs((a[:, 1:] * b[:, 1:]).sum(1))
    far |= known & (cosine < np.cos(np.radians(_DEGREES)))
    if far.any():
        k = int(far.argmax())
        raise DataError(
            f"{name}: expected the b-values and directions of {of}, got b {b[k, 0]:g} and direction {b[k, 1:].round(2).tolist()} "
            f"instead of {a[k, 0]:g} and {a[k, 1:].round(2).tolist()} in weighted image {k} (and {int(far.sum()) - 1} more); "
            "use volumes of one acquisition scheme."
        )


def _attempt(path: Path, largest_b0: float) -> tuple[Mask, Float64] | DataError:
    try:
        return read_scheme(path, largest_b0)
    except DataError as error:
        return error


def _first(scheme: Callable[[int], Scheme], count: int) -> tuple[int, Scheme]:
    """The first of ``count`` volumes that has a scheme, and that scheme; raises the first DataError where none has."""
    error: DataError | None = None
    for i in range(count):
        try:
            return i, scheme(i)
        except DataError as met:
            error = error or met
    raise error or DataError("diffusion expects at least one volume, got none.")


def _rounded(rows: Float64) -> Scheme:
    return [[round(float(v), 6) + 0.0 for v in row] for row in rows]


def _numbers(path: Path) -> Float64:
    try:
        return np.loadtxt(read_text(path).splitlines(), ndmin=2)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as a table of numbers ({error}).") from None


def _brain_file(volume: Path) -> Mask | None:
    for suffix in (".nii.gz", ".nii"):
        file = volume.parent / f"{stem(volume.name)}{BRAIN}{suffix}"
        if file.exists():
            return read_mask(file)
    return None


def check_scheme(trained: Mapping[str, Any], scored: Mapping[str, Any], name: str) -> None:
    """Of a detector's data and of new data (``DataSet.scheme``): raises DataError where they are of two schemes."""
    if "scheme" in trained and "scheme" in scored:
        same_scheme(trained["scheme"], scored["scheme"], name, "the training volumes")
