"""Results as DICOM, to look at beside the images in any viewer: a parametric map, a segmentation and pictures.

They belong to the study of the images that they refer to, so unlike everything else that normalcy writes they name the
patient, as those images do.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.arrays import Array
from normalcy.data.dataset import DataSet, Failure
from normalcy.data.dicom import require_pydicom, sources
from normalcy.data.images import read_raw
from normalcy.data.volumes import Space, as_darkest
from normalcy.errors import DataError, NormalcyWarning
from normalcy.files import prepare_target, refuse_source, remove, write_bytes, write_folder
from normalcy.provenance import NOTICE, versions
from normalcy.results.folder import MAPS, ResultsFolder, read_results
from normalcy.results.inputs import reopen
from normalcy.results.names import file_names, readable
from normalcy.results.run import Thresholds
from normalcy.results.writer import Writer, refuse_inputs


def write_dicom(
    results: Path,
    out: Path,
    data: DataSet | None = None,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[Failure]]:
    """DICOM files for each DICOM image of a results folder, in the folder ``out``, which is written whole or not at all: how many
    images, and those for which none could be written.

    Below the base name of an image (see scores.csv), ``map.dcm`` is a parametric map with the values of the map;
    ``regions.dcm`` a segmentation of what is above the pixel threshold, where there is one and something is;
    ``overlay-<slice>.dcm`` secondary captures of those slices, or of the one with the peak. All refer to the source instances.
    Images that do not lie in a frame of reference (radiographs, ultrasound) get no ``map.dcm``: a parametric map needs one. A
    warning says of how many.
    ``data`` is opened again as run.json names it unless given (:func:`~normalcy.results.inputs.reopen`).
    """
    prepare_target(out, overwrite)
    refuse_source(out, results)
    read = read_results(results)
    if data is None:
        data, reason = reopen(read)
        if data is None:
            raise DataError(f"{results}: {reason}")
    refuse_inputs(out, data)
    chosen = data
    places = {readable(item.path): i for i, item in enumerate(chosen.items)}
    names = file_names(read.paths)
    failed: list[Failure] = []
    without_map: list[str] = []

    def fill(folder: Path) -> None:
        writer = Writer(folder)
        for i, path in enumerate(read.paths):
            if on_progress is not None:
                on_progress(i + 1, len(read))
            try:
                place = places.get(path)
                space = None if place is None else chosen.space(place)
                if place is None or space is None or not space.files:
                    raise DataError(f"{path}: is no DICOM image of {chosen.name}; only those get DICOM results.")
                image = chosen.read(place)
                image = as_darkest(image, chosen.imaged(place, image))
                if not _write_one(writer.path(names[i]), path, _map(read, i), image, space, read.run.calibration):
                    without_map.append(path)
            except DataError as error:
                failed.append(Failure(path, str(error)))
        if len(failed) == len(read):
            raise DataError(f"{results}: no DICOM result could be written: {failed[0].reason}")

    write_folder(out, fill, overwrite)
    if without_map:
        warnings.warn(
            f"{len(without_map)} images have no frame of reference (FrameOfReferenceUID, ImageOrientationPatient), without which "
            "DICOM has no parametric map: they have overlays, and regions unless they are of several frames "
            f"({', '.join(without_map[:3])}{', ...' * (len(without_map) > 3)}); the values are in the maps of {results}.",
            NormalcyWarning,
            stacklevel=2,
        )
    return len(read) - len(failed), failed


# -- private -----------------------------------------------------------------------------------------------------------


def _map(read: ResultsFolder, i: int) -> Array:
    file = read.file("maps", i, *MAPS)
    if file is None:
        raise DataError(f"{read.paths[i]}: has no map; score the images again without --no-maps.")
    return np.asarray(read_raw(file), np.float32)


def _write_one(
    folder: Path, path: str, values: Array, image: Array, space: Space, calibration: Thresholds | None
) -> bool:
    """Whether there is a parametric map among the files: it needs a frame of reference, the others do not (PS3.3, A.51.3)."""
    try:
        import highdicom
    except ImportError:
        raise DataError('DICOM results need highdicom; pip install "normalcy[medical]".') from None
    datasets, order = sources(space, path)

    def frames(x: Array) -> Array:
        """([C,] *size) -> (frames, rows, columns[, C]) in the order of the source's frames."""
        stored = space.to_file(x)
        stored = stored.transpose(2, 1, 0, *range(3, stored.ndim))
        unsorted = np.empty_like(stored)
        unsorted[order] = stored
        return np.ascontiguousarray(unsorted)

    calibration = calibration or Thresholds()
    threshold, span = calibration.pixel_threshold, calibration.map_range
    heat = frames(values)
    marked = heat > threshold if threshold is not None else np.zeros(heat.shape, bool)
    common = {
        "series_instance_uid": None,
        "manufacturer": "normalcy",
        "manufacturer_model_name": "normalcy",
        "software_versions": versions()["normalcy"],
        "device_serial_number": "0",
        "instance_number": 1,
    }

    def identity(number: int) -> dict[str, Any]:
        return {
            **common,
            "series_instance_uid": highdicom.UID(),
            "sop_instance_uid": highdicom.UID(),
            "series_number": number,
        }

    try:
        number = 9000 + int(datasets[0].get("SeriesNumber") or 0) % 100 * 10
        placed = space.oriented and "FrameOfReferenceUID" in datasets[0]
        if placed:
            _save(_parametric_map(highdicom, datasets, heat, identity(number)), folder / "map.dcm")
        if marked.any() and (placed or not _has_frames(datasets[0])):  # segmentations of frames need their places
            regions = _segmentation(highdicom, datasets, marked, identity(number + 1))
            if not placed:
                regions.PatientOrientation = list(_towards(datasets[0]) or "") or None
            _save(regions, folder / "regions.dcm")
        shown = np.flatnonzero(marked.any((1, 2))) if marked.any() else [int(heat.max((1, 2)).argmax())]
        series = highdicom.UID()
        grey, limits = frames(image), span or (float(heat.min()), float(heat.max()))
        for k in shown:
            source = datasets[k] if len(datasets) > 1 else datasets[0]
            one = _overlay(highdicom, source, _blend(grey[k], heat[k], grey, limits), series, number + 2, int(k) + 1)
            _save(one, folder / f"overlay-{int(k):04d}.dcm")
    except Exception as error:  # of pydicom and highdicom, of every type; their texts may quote the file
        remove(folder)
        if isinstance(error, OSError):
            raise
        raise DataError(
            f"{path}: the source lacks what DICOM results need{_missing(datasets[0], error)}; use the map in the results folder."
        ) from None
    return placed


def _save(dataset: Any, path: Path) -> None:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    write_bytes(path, buffer.getvalue())


_NEEDED = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def _missing(dataset: Any, error: Exception) -> str:
    """Which attribute of the standard a source has not, by its keyword; never a text of the file."""
    named = re.search(r"no attribute '(\w+)'", str(error)) if isinstance(error, AttributeError) else None
    if named is not None and require_pydicom().datadict.tag_for_keyword(named[1]) is not None:
        return f" ({named[1]})"
    lacks = [word for word in _NEEDED if word not in dataset and "NumberOfFrames" not in dataset]
    return f" ({', '.join(lacks)})" if lacks else ""


def _parametric_map(highdicom: Any, datasets: list[Any], heat: Array, identity: dict[str, Any]) -> Any:
    unit = highdicom.sr.CodedConcept("1", "UCUM", "no units")
    low, high = float(heat.min()), float(heat.max())
    meaning = highdicom.pm.RealWorldValueMapping(
        lut_label="anomaly", lut_explanation="anomaly map", unit=unit, value_range=(low, high), slope=1, intercept=0
    )
    return highdicom.pm.ParametricMap(
        datasets,
        heat,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        window_center=(low + high) / 2,
        window_width=max(high - low, 1e-6),
        content_label="ANOMALY_MAP",
        content_description=NOTICE[:64],
        **identity,
    )


def _segmentation(highdicom: Any, datasets: list[Any], marked: Array, identity: dict[str, Any]) -> Any:
    abnormal = highdicom.sr.CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="normalcy",
        version=versions()["normalcy"],
        family=highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="above the pixel threshold",
        segmented_property_category=abnormal,
        segmented_property_type=abnormal,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    return highdicom.seg.Segmentation(datasets, marked, "BINARY", [segment], content_label="ANOMALY", **identity)


def _overlay(highdicom: Any, source: Any, pixels: Array, series: str, number: int, instance: int) -> Any:
    """A secondary capture that refers to the slice it shows."""
    towards, frames = _towards(source), int(source.get("NumberOfFrames") or 1)
    image = highdicom.sc.SCImage.from_ref_dataset(
        source,
        pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=series,
        series_number=number,
        sop_instance_uid=highdicom.UID(),
        instance_number=instance,
        manufacturer="normalcy",
        patient_orientation=("L", "P"),
    )
    image.PatientOrientation = (
        list(towards or "") or None
    )  # highdicom knows neither an empty one nor oblique ones (A, FR)
    if "ImageLaterality" not in image:
        image.Laterality = source.get("Laterality")
    reference = require_pydicom().Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if frames > 1:
        reference.ReferencedFrameNumber = instance
    image.SourceImageSequence = [reference]
    image.SeriesDescription = "Anomaly map over image: no diagnosis"
    return image


def _has_frames(source: Any) -> bool:
    """Whether a source is of a class with frames; those of X-ray angiography and fluoroscopy may leave out that there is one."""
    return "NumberOfFrames" in source or source.SOPClassUID in (
        "1.2.840.10008.5.1.4.1.1.12.1",
        "1.2.840.10008.5.1.4.1.1.12.2",
    )


def _towards(source: Any) -> tuple[str, str] | None:
    """Where rows and columns of an image run to in the patient; None where it does not say."""
    letters = [("L", "P", "H"), ("R", "A", "F")]
    cosines = [float(v) for v in source.get("ImageOrientationPatient") or []]
    if len(cosines) == 6:
        rows = (cosines[:3], cosines[3:])
        along, down = (letters[row[axis] < 0][axis] for row in rows for axis in [int(np.abs(row).argmax())])
        return along, down
    given = [str(one) for one in source.get("PatientOrientation") or []]
    known = len(given) == 2 and all(re.fullmatch(r"[LRAPHF]{1,3}", one) for one in given)
    return (given[0], given[1]) if known else None


def _blend(plane: Array, heat: Array, whole: Array, limits: Any) -> Array:
    """(rows, columns[, C]) under its map, uint8 (rows, columns, 3)."""
    from matplotlib import colormaps

    def scaled(x: Array, low: float, high: float) -> Array:
        return np.asarray(np.clip((x.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1))

    low, high = np.percentile(whole, (0.5, 99.5))
    grey = scaled(plane if plane.ndim == 2 else plane.mean(-1), float(low), float(high))
    strength = scaled(heat, *limits)
    colours = colormaps["inferno"](strength)[..., :3]
    mixed = grey[..., None] * (1 - 0.7 * strength[..., None]) + 0.7 * strength[..., None] * colours
    return np.asarray(np.rint(255 * np.clip(mixed, 0, 1)), np.uint8)
