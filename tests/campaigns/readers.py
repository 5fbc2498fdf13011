"""Mutated images, volumes, slides, arrays, tables and settings: each is read, or refused in one message.

    python tests/campaigns/readers.py 20000 --seed 0 --out tests/campaigns/results/readers.json

Valid files of each format are made once. Each case changes one to three things that the structure of a format offers (elements
of DICOM data sets, fields of NIfTI and MGH headers, header lines of NRRD and MetaImage, tags of TIFF, chunks of PNG, segments of
JPEG, headers of arrays, the directory of a zip, the footer of Parquet, cells and lines of text), or bytes anywhere, and opens the
file as the commands do: the data set, each image, its size, space and mask. Cases run in processes that are watched from
outside. What fails is written with its number, so that ``--only NUMBER`` repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import mmap
import os
import platform
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import imagecodecs
import nibabel
import nrrd
import numpy as np
import pyarrow
import pyarrow.parquet
import pydicom
import tifffile
import tiffslide
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from normalcy.config import read_toml
from normalcy.data.open import open_data
from normalcy.errors import NormalcyError, NormalcyWarning

SECONDS = 2.0
"""Processor time that a file may take."""
MEMORY = 2**30
"""Bytes of memory that a file may take beyond those of the process before it."""
LONGEST = 1000
"""Characters of a message."""
SECRET = "Mustermann^Erika"
"""In free text of the files that have some: no message may quote it."""
BLOCK = 250
"""Cases to a process."""

rng0 = np.random.default_rng(0)
Mutation = Callable[[bytes, random.Random], bytes]


# -- valid files -------------------------------------------------------------------------------------------------------------


def dicom(kind: str = uid.CTImageStorage, frames: int = 0, k: int = 0, **words: Any) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{k}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.5"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.InstitutionName = SECRET, SECRET, "19620304", SECRET
    ds.Modality, ds.Rows, ds.Columns, ds.InstanceNumber = "CT", 16, 17, k + 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * k]
    ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = [0.5, 0.5], 2, 1, -1024
    ds.PixelPaddingValue = 0
    shape = (frames, 16, 17) if frames else (16, 17)
    ds.PixelData = rng0.integers(0, 4000, shape, dtype=np.uint16).tobytes()
    if frames:
        ds.NumberOfFrames = frames
    for name, value in words.items():
        setattr(ds, name, value)
    return ds


def enhanced() -> Dataset:
    ds = dicom(uid.EnhancedCTImageStorage, 4)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, name)
    shared, measures, plane, scale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [scale]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in range(4):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * k]
        group.PlanePositionSequence = [place]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    return ds


def dose() -> Dataset:
    return dicom(
        uid.RTDoseStorage, 3, Modality="RTDOSE", GridFrameOffsetVector=[0, 2, 4], DoseUnits="GY", DoseGridScaling=0.01
    )


def nuclear() -> Dataset:
    ds = dicom(uid.NuclearMedicineImageStorage, 3, Modality="NM", SpacingBetweenSlices=2, SliceVector=[1, 2, 3])
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.DetectorInformationSequence = [detector]
    return ds


def radiograph() -> Dataset:
    ds = dicom(uid.DigitalXRayImageStorageForPresentation, Modality="DX", PhotometricInterpretation="MONOCHROME1")
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "OD"
    table.LUTData = (np.arange(4096) ** 2 // 4095).astype(np.uint16).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    ds.ModalityLUTSequence = [table]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    return ds


def palette() -> Dataset:
    ds = dicom(uid.SecondaryCaptureImageStorage, Modality="OT", PhotometricInterpretation="PALETTE COLOR")
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelData = 7, rng0.integers(0, 256, (16, 17), dtype=np.uint8).tobytes() + b""
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", np.arange(256, dtype=np.uint16).tobytes())
        ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
    return ds


def colour() -> Dataset:
    pixels = rng0.integers(0, 256, (16, 17, 3), dtype=np.uint8).tobytes()
    return dicom(
        uid.UltrasoundImageStorage, Modality="US", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels,
    )  # fmt: skip


def slide_of_tiles() -> Dataset:
    ds = dicom(uid.VLWholeSlideMicroscopyImageStorage, 4, Modality="SM", DimensionOrganizationType="TILED_FULL")
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = 34, 32
    return ds


def dicom_bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def compressed(syntax: str) -> bytes:
    ds = dicom()
    if syntax in (uid.JPEGLosslessSV1, uid.JPEG2000Lossless):  # which pydicom does not encode by itself
        pixels = ds.pixel_array
        frame = (
            imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12)
            if syntax == uid.JPEGLosslessSV1
            else imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0)
        )
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([frame]), syntax
    else:
        ds.compress(syntax)
    return dicom_bytes(ds)


def pillow(image: Any, suffix: str, **words: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, suffix, **words)
    return buffer.getvalue()


def tiff(array: Any, **words: Any) -> bytes:
    buffer = io.BytesIO()
    big = {"bigtiff": words.pop("bigtiff", False)}
    with tifffile.TiffWriter(buffer, **big) as file:
        file.write(array, metadata=None, description=SECRET, **words)
    return buffer.getvalue()


def saved(write: Callable[[str], object], name: str) -> bytes:
    """What is written to a file of that name."""
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/{name}")
        return Path(folder, name).read_bytes()


def tissue() -> Any:
    image = np.full((160, 192, 3), 240, np.uint8)
    image[40:120, 40:150] = rng0.integers(90, 180, (80, 110, 3))
    return image


def seeds() -> dict[str, list[tuple[str, bytes]]]:
    """Format -> valid files, each with the name by which it is opened."""
    grey, deep = rng0.integers(0, 256, (20, 21), dtype=np.uint8), rng0.integers(0, 65536, (20, 21), dtype=np.uint16)
    rgb, volume = rng0.integers(0, 256, (20, 21, 3), dtype=np.uint8), rng0.integers(0, 99, (9, 8, 7)).astype(np.int16)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    one, two = nibabel.Nifti1Image(volume, affine), nibabel.Nifti2Image(volume.astype(np.float32), affine)
    one.header["descrip"], one.header["aux_file"] = SECRET.encode(), SECRET.encode()
    four = nibabel.Nifti1Image(rng0.integers(1, 99, (5, 6, 4, 3)).astype(np.uint16), affine)
    four.header.set_slope_inter(2.0, 1.0)
    mgh = nibabel.MGHImage(volume.astype(np.float32), affine).to_bytes()

    def nrrd_file(**header: Any) -> bytes:
        words = {"spacings": [1, 2, 3], "content": SECRET, **header}
        return saved(lambda name: nrrd.write(name, volume, words, index_order="F"), "a.nrrd")

    def meta_image(packed: bool) -> bytes:
        values = zlib.compress(volume.tobytes("F")) if packed else volume.tobytes("F")
        lines = {
            "ObjectType": "Image", "NDims": 3, "Comment": SECRET, "BinaryData": True, "BinaryDataByteOrderMSB": False,
            "CompressedData": packed, "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1 2 3",
            "DimSize": "9 8 7", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
        }  # fmt: skip
        return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode() + values

    def npy(array: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    def npz(save: Callable[..., None]) -> bytes:
        buffer = io.BytesIO()
        save(buffer, images=np.stack([grey] * 5), labels=np.array([0, 0, 0, 1, 1]), masks=np.stack([grey > 250] * 5))
        return buffer.getvalue()

    def parquet(**words: Any) -> bytes:
        buffer = io.BytesIO()
        columns = {"path": ["0.png", "1.png", "2.png"], "label": [0, 1, 0], "split": ["train", "test", "test"]}
        pyarrow.parquet.write_table(pyarrow.table({**columns, "case": ["a", "b", "b"]}), buffer, **words)
        return buffer.getvalue()

    text = (
        "path,split,label,mask,case,type\n0.png,train,0,,a,good\n1.png,test,1,2.png,b,spot\nscan.nii[z=2],test,0,,c,\n"
    )
    exif = Image.Exif()
    exif[274], exif[270] = 6, SECRET
    planes = [tiff(deep), tiff(rgb, tile=(16, 16), photometric="rgb"), tiff(deep, compression="lzw", predictor=True)]
    planes += [tiff(rgb, compression="zlib", photometric="rgb"), tiff(grey, bigtiff=True), tiff(np.stack([deep] * 3))]
    planes += [
        tiff(deep.astype(np.float32), compression="zlib", predictor=True),
        tiff(rgb, compression="jpeg", photometric="rgb"),
    ]
    planes += [tiff(deep, byteorder=">") if False else tiff(deep, rowsperstrip=4), tiff(grey > 99)]
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    pictures = [pillow(grey, "PNG"), pillow(deep, "PNG"), pillow(rgb, "PNG"), pillow(np.dstack([rgb, grey]), "PNG")]
    pictures += [
        imagecodecs.png_encode(np.dstack([deep] * 3)),
        saved(lambda n: Image.fromarray(rgb).quantize(16).save(n), "a.png"),
    ]
    photographs = [
        pillow(grey, "JPEG"),
        pillow(rgb, "JPEG", quality=90, exif=exif),
        pillow(rgb, "JPEG", progressive=True),
    ]
    photographs += [
        saved(lambda n: Image.fromarray(rgb).convert("CMYK").save(n), "a.jpg"),
        pillow(rgb, "JPEG", subsampling=0),
    ]
    others = {"bmp": "BMP", "gif": "GIF", "webp": "WEBP", "ppm": "PPM", "jp2": "JPEG2000", "avif": "AVIF"}
    toml = f'# {SECRET}\nfalse_alarms = 0.1\nseed = 3\npreprocess = ["grey", "resize:32"]\nsize = 16\nlatent = 8\nlr = 1e-3\n'
    made = {
        "dicom": [dicom_bytes(ds) for ds in (dicom(), dose(), nuclear(), radiograph(), palette(), colour())],
        "dicom compressed": [
            compressed(k) for k in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEGLosslessSV1, uid.JPEG2000Lossless)
        ],
        "dicom enhanced": [dicom_bytes(enhanced()), dicom_bytes(slide_of_tiles())],
        "dicom series": [dicom_bytes(dicom(k=2))],
        "nifti": [one.to_bytes(), two.to_bytes(), gzip.compress(one.to_bytes()), four.to_bytes()],
        "diffusion": [four.to_bytes()],
        "mgh": [mgh, gzip.compress(mgh)],
        "nrrd": [nrrd_file(encoding=kind) for kind in ("raw", "gzip", "bzip2", "ascii")],
        "metaimage": [meta_image(False), meta_image(True)],
        "tiff": planes,
        "slide": [
            tiff(tissue(), tile=(32, 32), photometric="rgb", **scale, compression=c) for c in (None, "jpeg", "zlib")
        ],
        "png": pictures,
        "jpeg": photographs,
        "npy": [npy(deep), npy(np.asfortranarray(rgb)), npy(deep.astype(np.float64))],
        "npz": [npz(np.savez), npz(np.savez_compressed)],
        "csv": [text.encode(), text.replace(",", ";").encode()],
        "parquet": [parquet(), parquet(compression="none", use_dictionary=False), parquet(compression="gzip")],
        "toml": [toml.encode()],
    }
    names = {"dicom series": "2.dcm", "nifti": "a.nii", "diffusion": "a.nii", "mgh": "a.mgz", "metaimage": "a.mha"}
    named = {key: [(names.get(key, f"a.{key.split()[0]}"), data) for data in files] for key, files in made.items()}
    for key in ("dicom", "dicom compressed", "dicom enhanced"):
        named[key] = [("a.dcm", data) for data in made[key]]
    named["slide"] = [("a.tif", data) for data in made["slide"]]
    named["other images"] = [
        (f"a.{suffix}", pillow(rgb, kind))
        for suffix, kind in others.items()
        if kind in Image.registered_extensions().values()
    ]
    return named


# -- mutations ---------------------------------------------------------------------------------------------------------------

INTEGERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    255,
    256,
    348,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
)
TEXTS = (
    "",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "1e308",
    "-1e-308",
    "65536",
    "99999999999",
    "x",
    "x" * 5000,
    "\\",
    "1\\2",
    "\0",
    "é" * 40,
)


def bytes_anywhere(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, put in twice, or cut off; half the time near the beginning."""
    out, kind = bytearray(data or b"\0"), rng.randrange(6)
    end = min(len(out), 700) if rng.random() < 0.5 else len(out)
    start, length = rng.randrange(end), rng.randint(1, 64)
    if kind < 2:
        for _ in range(rng.randint(1, 8)):
            out[rng.randrange(end)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif kind == 2:
        out[start : start + length] = rng.randbytes(length)
    elif kind == 3:
        del out[start:]
    elif kind == 4:
        del out[start : start + length]
    else:
        out[start:start] = out[start : start + length] * rng.choice((1, 100))
    return bytes(out)


def put(data: bytes, place: int, kind: str, rng: random.Random) -> bytes:
    """A number of that type of struct at a place."""
    out, size = bytearray(data), struct.calcsize(kind)
    if place + size > len(out):
        return data
    if kind[-1] in "fd":
        value: Any = rng.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 1e9, 0.5))
    else:
        value = rng.choice((*INTEGERS, rng.randrange(2**16))) & (2 ** (8 * size) - 1)
        value = value - 2 ** (8 * size) if kind[-1].islower() and value >= 2 ** (8 * size - 1) else value
    out[place : place + size] = struct.pack(kind, value)
    return bytes(out)


def dicom_elements(data: bytes, rng: random.Random) -> bytes:
    """Elements of the data set, those in sequences too: another value, none, another type, or gone."""
    ds = pydicom.dcmread(io.BytesIO(data), force=True)
    places: list[tuple[Dataset, Any]] = []

    def walk(within: Dataset) -> None:
        for element in within:
            if (
                element.keyword != "PixelData" or not ds.file_meta.TransferSyntaxUID.is_encapsulated
            ):  # cannot be written then
                places.append((within, element.tag))
            if element.VR == "SQ":
                for item in element.value or []:
                    walk(item)

    walk(ds)
    for _ in range(rng.randint(1, 3)):
        within, tag = rng.choice(places)
        if tag not in within:
            continue
        element, kind = within[tag], rng.randrange(6)
        if kind == 0:
            del within[tag]
        elif kind == 1:
            element.value = [] if element.VR == "SQ" else None
        elif kind == 2 and element.VR == "SQ":
            element.value = list(element.value) * rng.choice((0, 2, 50))
        elif element.VR in ("US", "SS", "UL", "SL", "OW", "OB"):
            if isinstance(element.value, bytes):
                element.value = bytes_anywhere(element.value, rng)
            else:
                element.VR, element.value = "US", rng.choice([v for v in INTEGERS if v < 65536])
        elif element.VR in ("DS", "IS"):
            count = max(1, element.VM)
            values = [rng.choice(TEXTS[:9]) for _ in range(rng.choice((count, count, 1, 7)))]
            within.add_new(tag, "LO", values)  # what is no number cannot be set as one
        elif element.VR != "SQ":
            element.value = rng.choice(
                (*TEXTS, uid.SegmentationStorage, "RGB", "YBR_FULL_422", "MONOCHROME1", "1.2.840.10008.1.2.4.50")
            )
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def dicom_raw(data: bytes, rng: random.Random) -> bytes:
    """Lengths and types of elements as they lie in the file."""
    syntax = f"{uid.ExplicitVRLittleEndian}\0".encode()
    if syntax in data and rng.random() < 0.1:
        other = rng.choice((uid.ExplicitVRBigEndian, uid.RLELossless, "1.2.840.10008.1.2.9"))
        return data.replace(syntax, f"{other}\0".encode(), 1)
    places = [found.start() for found in re.finditer(rb"[A-Z]{2}(?=[^\0]\0|\0\0)", data[128:3000])]
    if not places:
        return bytes_anywhere(data, rng)
    place = 128 + rng.choice(places)
    if rng.random() < 0.5:
        vr = rng.choice((b"SQ", b"UN", b"OB", b"OW", b"US", b"DS", b"PN", b"FD", b"UT", b"AT", b"XX"))
        return data[:place] + vr + data[place + 2 :]
    return put(data, place + 2, rng.choice(("<H", "<I")), rng)


def header_fields(template: Any) -> Mutation:
    """A field of a header with the layout of ``template.template_dtype``, compressed or not."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        packed = data.startswith(b"\x1f\x8b")
        raw = gzip.decompress(data) if packed else data
        layouts = [kind.template_dtype for kind in template]
        layout = layouts[1] if len(layouts) > 1 and raw[:4] == b"\x1c\x02\0\0" else layouts[0]
        for _ in range(rng.randint(1, 3)):
            field, offset = layout.fields[rng.choice(list(layout.fields))][:2]
            kind = field.base.str
            letters = {"i": "bhiq", "u": "BHIQ", "f": " efd"}
            if kind[1] in letters:
                letter = letters[kind[1]][{1: 0, 2: 1, 4: 2, 8: 3}[field.base.itemsize]]
                count = max(1, field.itemsize // field.base.itemsize)
                at = offset + field.base.itemsize * rng.randrange(count)
                raw = put(raw, at, (">" if kind[0] == ">" else "<") + letter, rng)
            else:
                raw = raw[:offset] + rng.randbytes(field.itemsize) + raw[offset + field.itemsize :]
        return gzip.compress(raw, 1) if packed and rng.random() < 0.8 else raw

    return mutate


def lines(end: bytes) -> Mutation:
    """Lines of a header that ends at ``end``: another value, gone, twice, in another order."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        head, mark, values = data.partition(end)
        rows = head.split(b"\n")
        for _ in range(rng.randint(1, 3)):
            k, kind = rng.randrange(len(rows)), rng.randrange(7)
            key, separator, _ = rows[k].partition(b" = " if b" = " in rows[k] else b": ")
            if kind == 0:
                del rows[k : k + 1]
            elif kind == 1:
                rows.insert(k, rng.choice(rows or [b""]))
            elif kind == 2:
                rows[k] = rng.choice(TEXTS).encode()
            elif kind == 3:
                numbers = [
                    str(rng.choice((*INTEGERS, -1, "nan", 0.5))) for _ in range(rng.choice((1, 2, 3, 4, 9, 12, 17)))
                ]
                rows[k] = key + separator + " ".join(numbers).encode()
            elif kind == 4:
                rows[k] = re.sub(rb"\d+", str(rng.choice(INTEGERS)).encode(), rows[k], count=1)
            elif kind == 5:
                words = (
                    b"raw",
                    b"gzip",
                    b"bzip2",
                    b"ascii",
                    b"hex",
                    b"True",
                    b"False",
                    b"short",
                    b"MET_DOUBLE",
                    b"block",
                    b"domain",
                    b"../x",
                )
                rows[k] = key + separator + rng.choice(words)
            else:
                rng.shuffle(rows)
            rows = rows or [b""]
        return b"\n".join(rows) + mark + values

    return mutate


def tiff_tags(data: bytes, rng: random.Random) -> bytes:
    """An entry of a directory: its tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    start = struct.unpack(order + ("Q" if big else "I"), data[8:16] if big else data[4:8])[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    at = start + (8 if big else 2) + (20 if big else 12) * rng.randrange(min(count, 99))
    widths = {
        "tag": (0, "H"),
        "type": (2, "H"),
        "count": (4, "Q" if big else "I"),
        "value": (12 if big else 8, "Q" if big else "I"),
    }
    part = rng.choice(("tag", "type", "count", "value", "value", "value", "next", "swap"))
    if part == "next":  # perhaps a circle of directories
        out = bytearray(data)
        end = start + (8 if big else 2) + (20 if big else 12) * count
        struct.pack_into(order + ("Q" if big else "I"), out, end, rng.choice((start, 8, len(data), len(data) - 4)))
        return bytes(out)
    if part == "swap":  # a meaning that readers know, with the value of another
        out = bytearray(data)
        struct.pack_into(
            order + "H", out, at, rng.choice((256, 257, 258, 259, 262, 273, 277, 278, 284, 317, 322, 323, 330, 339))
        )
        return bytes(out)
    offset, kind = widths[part]
    return put(data, at + offset, order + kind, rng)


def png_chunks(data: bytes, rng: random.Random) -> bytes:
    """A chunk: its content, length or type, gone, twice, elsewhere; the checksum fits most of the time."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += 12 + length
    for _ in range(rng.randint(1, 2)):
        k, kind = rng.randrange(len(chunks)), rng.randrange(8)
        if kind < 3 and chunks[0][0] == b"IHDR":
            at, letter = rng.choice(((0, ">I"), (4, ">I"), (8, ">B"), (9, ">B"), (10, ">B"), (11, ">B"), (12, ">B")))
            chunks[0][1] = put(chunks[0][1], at, letter, rng)
        elif kind == 3:
            chunks[k][1] = bytes_anywhere(chunks[k][1], rng)
        elif kind == 4:
            chunks.insert(rng.randrange(len(chunks)), list(chunks[k]))
        elif kind == 5 and len(chunks) > 1:
            del chunks[k]
        elif kind == 6:
            chunks[k][0] = rng.choice(
                (b"IDAT", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"acTL", b"fdAT", b"gAMA", b"sBIT", b"eXIf")
            )
        else:
            name = rng.choice((b"zTXt", b"iTXt", b"iCCP"))
            chunks.insert(1, [name, b"a\0\0" + zlib.compress(bytes(rng.choice((10, 10**7))), 1)])
    out = data[:8]
    for name, body in chunks:
        check = zlib.crc32(name + body) if rng.random() < 0.95 else rng.randrange(2**32)
        length = len(body) if rng.random() < 0.97 else rng.choice(INTEGERS[:-1])
        out += struct.pack(">I", length) + name + body + struct.pack(">I", check)
    return out


def jpeg_segments(data: bytes, rng: random.Random) -> bytes:
    """A segment before the scan: its fields or length, gone, twice, of another type."""
    place, found = 2, []
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        found.append((place, 2 + length))
        place += 2 + length
    if not found:
        return bytes_anywhere(data, rng)
    start, length = rng.choice(found)
    kind = rng.randrange(6)
    frame = next((at for at, _ in found if data[at + 1] in (0xC0, 0xC1, 0xC2)), None)
    if kind < 2 and frame is not None:
        at, letter = rng.choice(((4, ">B"), (5, ">H"), (7, ">H"), (9, ">B"), (11, ">B"), (12, ">B"), (14, ">B")))
        return put(data, frame + at, letter, rng)
    if kind == 2:
        return data[:start] + data[start + length :]
    if kind == 3:
        return data[:start] + data[start : start + length] * rng.choice((2, 50)) + data[start + length :]
    if kind == 4:
        marks = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xDB, 0xDD, 0xE1, 0xE2, 0xEE, 0xFE)
        return data[: start + 1] + bytes([rng.choice(marks)]) + data[start + 2 :]
    return put(data, start + rng.randrange(2, length), rng.choice((">B", ">H")), rng)


def npy_header(data: bytes, rng: random.Random) -> bytes:
    """The text of the header, its version and length."""
    length = int.from_bytes(data[8:10], "little")
    head, kind = data[10 : 10 + length].decode("latin-1"), rng.randrange(5)
    if kind == 0:
        types = (
            "|O",
            "<U9",
            "|V4",
            "<f8",
            ">i2",
            "<c8",
            "|b1",
            "<M8[s]",
            "<f2",
            "|S0",
            "[('a', '<f4')]",
            "<f16",
            "|u1",
        )
        head = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(types)}'", head)
    elif kind == 1:
        shape = tuple(rng.choice((*INTEGERS, -1)) for _ in range(rng.choice((0, 1, 2, 3, 4, 5, 40))))
        head = re.sub(r"\([^)]*\)", str(shape), head)
    elif kind == 2:
        head = head.replace("False", rng.choice(("True", "None", "0", "'x'")))
    elif kind == 3:
        head = rng.choice(("(" * 3000, "{}", head * 3, "{'a': 1}", head.strip()[:-1], "[" * 90 + "]" * 90))
    else:
        return put(data, rng.choice((6, 7, 8)), rng.choice(("<B", "<H")), rng)
    text = head.encode("latin-1")[:65000]
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + length :]


def zip_directory(data: bytes, rng: random.Random) -> bytes:
    """Fields of the directory and of the headers of members; or a member's array is changed and all else fits."""
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            names = old.namelist()
            chosen = rng.choice(names)
            for name in names:
                body = old.read(name)
                changed = rng.choice((npy_header, bytes_anywhere))(body, rng) if name == chosen else body
                other = rng.choice((name, "x_train.npy", "labels.npy", "../x.npy", "masks_train.npy", "cases.npy"))
                new.writestr(other if name == chosen and rng.random() < 0.3 else name, changed)
                if rng.random() < 0.1:
                    new.writestr(name, changed)
        return buffer.getvalue()
    marks = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", data)]
    at = rng.choice(marks)
    offset, kind = rng.choice(
        (
            (6, "<H"),
            (8, "<H"),
            (10, "<H"),
            (14, "<I"),
            (16, "<I"),
            (18, "<I"),
            (20, "<I"),
            (24, "<I"),
            (28, "<H"),
            (42, "<I"),
        )
    )
    return put(data, at + offset, kind, rng)


def parquet_footer(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the footer, or its length."""
    length = int.from_bytes(data[-8:-4], "little")
    if rng.random() < 0.15:
        return put(data, len(data) - 8, "<I", rng)
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[len(out) - 8 - rng.randrange(1, length + 1)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(out)


def cells(data: bytes, rng: random.Random) -> bytes:
    """Cells of a table of text."""
    rows = [re.split(rb"[,;]", row) for row in data.split(b"\n")]
    separator = b";" if b";" in data else b","
    odd = [text.encode() for text in TEXTS] + [
        b'"', b"0.png", b"scan.nii[z=99]", b"scan.nii[t=0,z=1:3]", b"[z=1]", b".", b"..", b"../../etc/passwd", b"/dev/zero",
        b"train", b"1", b"\xff\xfe", b"0.png\r", b"x" * 140_000, b"label", b"path",
    ]  # fmt: skip
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(odd)
    return b"\n".join(separator.join(row) for row in rows)


def toml_values(data: bytes, rng: random.Random) -> bytes:
    """Values of settings, and lines."""
    rows = data.split(b"\n")
    odd = (
        b"nan", b"inf", b"[]", b"[[1]]", b"{a = {b = 1}}", b"-1", b"1e999", b"1" + b"0" * 5000, b'"' + b"x" * 5000 + b'"', b"'''",
        b"[" * 5000, b"true", b"1979-05-27", b"\0", b"0x10", b'"\\ud800"', b"\xff", b"'resize:99999999'", b'["pad:1e9"]',
    )  # fmt: skip
    for _ in range(rng.randint(1, 2)):
        k = rng.randrange(len(rows))
        key = rows[k].partition(b" = ")[0]
        rows[k] = rng.choice(
            (key + b" = " + rng.choice(odd), b"[" + key + b"]", rows[rng.randrange(len(rows))], rng.choice(odd))
        )
    return b"\n".join(rows)


WAYS: dict[str, tuple[Mutation, ...]] = {
    "dicom": (dicom_elements, dicom_elements, dicom_raw),
    "dicom compressed": (dicom_elements, dicom_raw),
    "dicom enhanced": (dicom_elements, dicom_elements, dicom_raw),
    "dicom series": (dicom_elements, dicom_elements, dicom_raw),
    "nifti": (header_fields((nibabel.Nifti1Header, nibabel.Nifti2Header)),),
    "diffusion": (header_fields((nibabel.Nifti1Header,)),),
    "mgh": (header_fields((nibabel.freesurfer.MGHImage.header_class,)),),
    "nrrd": (lines(b"\n\n"),),
    "metaimage": (lines(b"LOCAL\n"),),
    "tiff": (tiff_tags,),
    "slide": (tiff_tags,),
    "png": (png_chunks,),
    "jpeg": (jpeg_segments,),
    "npy": (npy_header,),
    "npz": (zip_directory,),
    "csv": (cells,),
    "parquet": (parquet_footer,),
    "toml": (toml_values,),
    "other images": (),
}


# -- one case ----------------------------------------------------------------------------------------------------------------


def surroundings(folder: Path) -> None:
    """What mutated files stand beside: other slices of the series, images of the tables, b-values."""
    (folder / "series").mkdir()
    for k in (0, 1, 3):
        (folder / "series" / f"{k}.dcm").write_bytes(dicom_bytes(dicom(k=k)))
    (folder / "diffusion").mkdir()
    (folder / "diffusion/a.bval").write_text("0 1000 1000")
    (folder / "diffusion/a.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    for k in range(3):
        (folder / f"{k}.png").write_bytes(pillow(np.full((8, 9), 40 * k, np.uint8), "PNG"))
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 6, 7), np.int16), np.eye(4)), folder / "scan.nii")


def prepare(number: int, seed: int, files: dict[str, list[tuple[str, bytes]]]) -> tuple[str, str, bytes, str]:
    """Format, name, bytes and how they were changed."""
    rng = random.Random(f"{seed} {number}")
    key = list(files)[number % len(files)]
    name, data = rng.choice(files[key])
    ways = [*WAYS[key], bytes_anywhere] if rng.random() < 0.8 else [bytes_anywhere]
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        way = rng.choice(ways)
        try:
            data = way(data, rng)
            done.append(way.__name__)
        except Exception as error:  # an earlier change left no structure to change
            done.append(f"nothing more ({type(error).__name__})")
    return key, name, data, ", ".join(done)


def read_all(key: str, path: Path) -> int:
    """Opens the file as the commands do; how many images could be read. Raises NormalcyError where none could."""
    if key == "toml":
        read_toml(path)
        return 1
    spec = {
        "slide": f"slides:{path},tile=32,tissue=0.1",
        "diffusion": f"diffusion:{path.parent}",
        "dicom series": path.parent,
    }
    data = open_data(spec.get(key, path))
    count, fault = 0, None
    for i in range(min(len(data), 8)):
        for read in (data.read, data.size, data.space, data.mask):
            try:
                read(i)
                count += read == data.read
            except NormalcyError as error:
                fault = error
                check_message(error, path)
    if fault is not None and not count:
        raise fault
    return count


def check_message(error: NormalcyError, path: Path) -> None:
    said = str(error)
    if (
        "\n" in said
        or not said.strip()
        or (said[-1] not in ".?" and path.suffix != ".toml")
        or len(re.sub(r"\S{200,}", "", said)) > LONGEST
    ):
        raise AssertionError(f"no single short sentence: {said[:300]!r}")
    if SECRET in said or "Mustermann" in said:
        raise AssertionError(f"quotes the file: {said[:300]!r}")
    if re.search(r"\b(Traceback|object at 0x|Errno|\w+Error\b)", said):
        raise AssertionError(f"no words for a person: {said[:300]!r}")


WRITES: list[str] = []


def watch_writes(event: str, words: tuple[Any, ...]) -> None:
    """An audit hook: files that are opened to be written, made, renamed or removed."""
    if (event == "open" and isinstance(words[1], str) and set(words[1]) & set("wax+")) or (
        event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        WRITES.append(f"open {words[0]}")
    elif event in (
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "subprocess.Popen",
    ):
        WRITES.append(event)


def memory(reset: bool = False) -> int:
    """Largest memory of this process since the last reset, in bytes."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def case(number: int, seed: int, files: dict[str, list[tuple[str, bytes]]], folder: Path) -> dict[str, Any]:
    key, name, data, how = prepare(number, seed, files)
    below = {"dicom series": "series", "diffusion": "diffusion"}.get(key, "")
    path = folder / below / name
    path.write_bytes(data)
    before = memory(reset=True)
    del WRITES[:]
    started, outcome, failure = time.process_time(), "refused", ""
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            outcome = "read" if read_all(key, path) else "refused"
        for note in notes:
            if issubclass(note.category, NormalcyWarning) and "Mustermann" in str(note.message):
                failure = f"a note quotes the file: {note.message}"
    except NormalcyError as error:
        try:
            check_message(error, path)
        except AssertionError as fault:
            failure = str(fault)
    except BaseException as error:
        failure = "".join(traceback.format_exception(error))[-1500:]
    seconds, most = time.process_time() - started, memory() - before
    written = list(WRITES)
    path.unlink(missing_ok=True)
    if not failure and written:
        failure = f"wrote: {written[:3]}"
    if not failure and seconds > SECONDS:
        failure = f"took {seconds:.1f} s"
    if not failure and most > MEMORY:
        failure = f"took {most / 2**20:.0f} MiB"
    result = {"number": number, "format": key, "how": how, "outcome": outcome, "seconds": seconds, "bytes": most}
    return {**result, "failure": failure} if failure else result


def block(
    numbers: list[int], seed: int, files: dict[str, list[tuple[str, bytes]]], folder: Path
) -> list[dict[str, Any]]:
    """Cases in processes of their own, each until one of them dies or stops moving."""
    results: list[dict[str, Any]] = []
    place = mmap.mmap(-1, 8)
    while numbers:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.chdir(folder)
                for k, number in enumerate(numbers):
                    place[:] = struct.pack("<q", k)
                    signal.setitimer(signal.ITIMER_REAL, 30)  # ends the process
                    found = case(number, seed, files, folder)
                    os.write(writer, json.dumps(found).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            lines_of = stream.read().splitlines()
        status = os.waitpid(child, 0)[1]
        results += [json.loads(line) for line in lines_of]
        done = len(lines_of)
        if done < len(numbers):
            key, _, _, how = prepare(numbers[done], seed, files)
            why = (
                f"ended the process: {signal.Signals(os.WTERMSIG(status)).name}"
                if os.WIFSIGNALED(status)
                else "ended the process"
            )
            results.append(
                {
                    "number": numbers[done],
                    "format": key,
                    "how": how,
                    "outcome": "died",
                    "seconds": 0.0,
                    "bytes": 0,
                    "failure": why,
                }
            )
        numbers = numbers[done + 1 :]
    return results


def campaign(numbers: list[int], seed: int, show: Callable[[str], object]) -> dict[str, Any]:
    files, results, started = seeds(), [], time.monotonic()
    list(tiffslide.TiffSlide.__mro__)  # loaded before processes are made
    sys.addaudithook(watch_writes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "a" / "b"  # a path in a table may name the folder above
        folder.mkdir(parents=True)
        surroundings(folder)
        kept = sorted(path for path in folder.rglob("*"))
        for first in range(0, len(numbers), BLOCK):
            found = block(numbers[first : first + BLOCK], seed, files, folder)
            for one in found:
                if "failure" in one:
                    show(json.dumps(one))
            results += found
            failed = [one for one in results if "failure" in one]
            show(f"{len(results)} of {len(numbers)}, {len(failed)} failed, {time.monotonic() - started:.0f} s")
        left = sorted(path for path in folder.rglob("*"))
        for one in {"left": left} if left != kept else {}:
            results.append(
                {
                    "number": -1,
                    "format": "all",
                    "how": one,
                    "outcome": "died",
                    "seconds": 0.0,
                    "bytes": 0,
                    "failure": "files are left",
                }
            )
    outcomes: dict[str, Counter[str]] = {}
    for one in results:
        outcomes.setdefault(one["format"], Counter())[one["outcome"]] += 1
    slowest, largest = (max(results, key=lambda one, key=key: one[key]) for key in ("seconds", "bytes"))
    return {
        "cases": len(results),
        "seed": seed,
        "bounds": {"cpu_seconds": SECONDS, "bytes": MEMORY, "characters": LONGEST},
        "seconds": round(time.monotonic() - started),
        "unchanged": sum(one["how"].startswith("nothing more") and ", " not in one["how"] for one in results),
        "outcomes": {key: dict(sorted(count.items())) for key, count in sorted(outcomes.items())},
        "longest_cpu_seconds": round(slowest["seconds"], 3),
        "slowest": {key: slowest[key] for key in ("number", "format", "how")},
        "largest_bytes": largest["bytes"],
        "largest": {key: largest[key] for key in ("number", "format", "how")},
        "failures": [one for one in results if "failure" in one],
    }


def provenance() -> dict[str, Any]:
    def said(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    processor = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    changed = bool(said("git", "status", "--porcelain", "--", "../../src"))
    return {
        "commit": said("git", "rev-parse", "--short=12", "HEAD") + "+" * changed,
        "processor": processor[1] if processor else platform.machine(),
        "python": platform.python_version(),
        "packages": {one.__name__: one.__version__ for one in (pydicom, nibabel, np, tifffile, imagecodecs, pyarrow)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", type=int, help="one case, and its file in the working folder")
    words = parser.parse_args()
    if words.only is not None:
        key, name, data, how = prepare(words.only, words.seed, seeds())
        Path(f"case-{words.only}-{name}").write_bytes(data)
        print(f"{key}: {how}")
    numbers = list(range(words.count)) if words.only is None else [words.only]
    result = campaign(numbers, words.seed, lambda text: print(text, file=sys.stderr, flush=True))
    if words.out is not None:
        words.out.write_text(json.dumps({**provenance(), **result}, indent=1) + "\n")
    print(
        json.dumps(
            {key: result[key] for key in ("cases", "seconds", "longest_cpu_seconds", "largest_bytes", "outcomes")},
            indent=1,
        )
    )
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
