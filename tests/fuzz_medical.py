"""Mutated NIfTI and DICOM files: each gives an array or one sentence, soon.

    python tests/fuzz_medical.py 100000

``tests/test_fuzz_medical.py`` tries 5,000; this command as many as asked for, and prints what came of them.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable

import imagecodecs
import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from normalcy.data.dicom import decode_series, series_space
from normalcy.data.volumes import decode_volume, volume_space
from normalcy.errors import DataError

LONGEST = 5.0
"""Seconds of the processor that a file may take."""


def seeds() -> dict[str, bytes]:
    """Valid files, by name."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 99, (9, 8, 7)).astype(np.int16)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    one = nibabel.Nifti1Image(array, affine).to_bytes()
    two = nibabel.Nifti2Image(array.astype(np.float32), affine).to_bytes()
    files = {"nifti.nii": one, "nifti.nii.gz": gzip.compress(one), "nifti2.nii": two}
    syntaxes = {
        "plain.dcm": None,
        "rle.dcm": RLELossless,
        "jpegls.dcm": JPEGLSLossless,
        "jpeg.dcm": JPEGLosslessSV1,
        "jpeg2000.dcm": JPEG2000Lossless,
    }
    for name, syntax in syntaxes.items():
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        ds.SeriesInstanceUID, ds.PatientID, ds.PatientName = "1.2.3", "MRN-4711", "Doe^Jane"
        ds.Modality, ds.Rows, ds.Columns = "CT", 16, 17
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
        ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [0.5, 0.5], 1, -1024
        ds.PixelData = rng.integers(0, 4000, (16, 17), dtype=np.uint16).tobytes()
        if name in ("jpeg.dcm", "jpeg2000.dcm"):  # which pydicom does not encode by itself
            pixels = ds.pixel_array
            frame = (
                imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12)
                if name == "jpeg.dcm"
                else imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0)
            )
            ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([frame]), syntax
        elif syntax is not None:
            ds.compress(syntax)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
        files[name] = buffer.getvalue()
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut out, put in twice, or cut off; half the time in the header."""
    changed = bytearray(data)
    end = min(len(changed), 700) if rng.random() < 0.5 else len(changed)
    kind = rng.integers(5)
    if kind == 0:
        for place in rng.integers(0, end, rng.integers(1, 16)):
            changed[place] = rng.integers(256)
    elif kind == 1:
        start, length = int(rng.integers(end)), int(rng.integers(1, 64))
        changed[start : start + length] = rng.bytes(length)
    elif kind == 2:
        del changed[int(rng.integers(end)) :]
    elif kind == 3:
        start, length = int(rng.integers(end)), int(rng.integers(1, 64))
        del changed[start : start + length]
    else:
        start, length = int(rng.integers(end)), int(rng.integers(1, 64))
        changed[start:start] = changed[start : start + length]
    return bytes(changed)


def fuzz(count: int, seed: int = 0) -> tuple[Counter[str], float]:
    """What came of ``count`` mutations, in numbers, and the longest seconds; raises what is not a DataError."""
    rng = np.random.default_rng(seed)
    files = seeds()
    outcomes: Counter[str] = Counter()
    longest = 0.0
    for i in range(count):
        name = list(files)[i % len(files)]
        data = mutate(files[name], rng)
        started = time.process_time()  # whatever else the machine does
        readers: list[Callable[[], object]] = (
            [lambda d=data: decode_series([d], ["a"], "a"), lambda d=data: series_space([d], ["a"], "a")]
            if name.endswith(".dcm")
            else [lambda d=data: decode_volume(d, "a"), lambda d=data: volume_space(d, "a")]
        )
        for read in readers:
            try:
                read()
                outcomes["read"] += 1
            except DataError as error:
                said = str(error)
                if not said.startswith("a: ") or "\n" in said or any(secret in said for secret in ("4711", "Doe")):
                    raise RuntimeError(f"not one sentence without names: {said}") from error
                outcomes["refused"] += 1
        longest = max(longest, time.process_time() - started)
    return outcomes, longest


if __name__ == "__main__":
    faulthandler.dump_traceback_later(1800, exit=True)
    warnings.simplefilter("ignore")
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    started = time.perf_counter()
    found, slowest = fuzz(total)
    print(f"{total} mutated files in {time.perf_counter() - started:.0f} s, the slowest {slowest:.2f} s: {dict(found)}")
    assert slowest < LONGEST
