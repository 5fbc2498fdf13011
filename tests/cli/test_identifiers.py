"""No command prints or writes an identifier that is in its inputs: every output of every command is searched.

Names of files and folders are kept, and the objects of ``normalcy dicom`` belong to the patient's study.
"""

import base64
import contextlib
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from runner import Run

ROOT, NAME, DATE, TIME, AGE = "1.2.826.0.1.3680043.77", "QZX", "18910317", "031719.987", "077Y"
TOKENS = tuple(token.encode() for token in (ROOT, NAME, NAME.lower(), DATE, TIME, "1891-03-17", "1891/03/17", AGE))
MEANT = {
    "SOPClassUID", "ImageType", "Modality", "PhotometricInterpretation", "RescaleType", "PixelPresentation",
    "SpecificCharacterSet", "Units", "DoseUnits", "ModalityLUTType", "DimensionOrganizationType",
}  # fmt: skip
"""Terms that say what an image is."""


def value_of(kind: str, tag: int, i: int) -> str | None:
    """An identifier for an element of this type; None for what is no text."""
    texts = {
        "PN": f"{NAME}{tag:08X}^{i}",
        "DA": DATE,
        "TM": TIME,
        "DT": DATE + TIME,
        "AS": AGE,
        "UI": f"{ROOT}.{tag}.{i}",
    }
    if kind in ("LO", "LT", "ST", "UT", "UC", "SH", "CS", "AE", "UR"):
        return f"{NAME}{tag:08X}{i}"[:16]
    return texts.get(kind)


ELEMENTS = [
    (tag, kind)
    for tag, (kind, *_, keyword) in sorted(DicomDictionary.items())
    if 0x00080000 <= tag < 0x00880000 and keyword and keyword not in MEANT and value_of(kind, tag, 0) is not None
]
"""All of patient, study, series, equipment and image that are text in the standard's dictionary."""

USUAL = [
    (tag, kind)
    for tag, kind in ELEMENTS
    if re.match(
        r"Patient|Study|Series|SOPInst|FrameOf|Accession|Institution|Referring|Operator|Device", keyword_for_tag(tag)
    )
]


def pixels_of(i: int, defect: bool) -> np.ndarray:
    x = np.random.default_rng(i).integers(90, 110, (16, 18)).astype(np.int16)
    if defect:
        x[4:9, 5:10] = 300
    return x


def dicom_file(path: Path, i: int, defect: bool) -> None:
    """One image of a patient of its own, with an identifier in every element of text, sequences and private ones included."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    complete = i in (0, 44, 48)  # of training, of normal and of defective test images: all would take minutes
    for tag, kind in ELEMENTS if complete else USUAL:
        ds.add_new(tag, kind, value_of(kind, tag, i))
    inner = Dataset()
    inner.PatientID, inner.PatientName, inner.StudyDate = f"{NAME}-inner", f"{NAME}^Inner", DATE
    ds.OtherPatientIDsSequence = ds.ReferencedStudySequence = [inner]
    block = ds.private_block(0x0009, f"{NAME}PRIVATE", create=True)
    block.add_new(1, "LO", f"{NAME}private")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.ImageType = "CT", 1, 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientSex, ds.PatientOrientation = "F", ["L", "P"]
    ds.Rows, ds.Columns = 16, 18
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    ds.PixelSpacing, ds.SliceThickness = [1, 1], 2
    ds.PixelData = pixels_of(i, defect).tobytes()
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def nifti_file(path: Path, i: int, defect: bool) -> None:
    image = nibabel.Nifti1Image(pixels_of(i, defect)[:, :, None], np.eye(4))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = f"{NAME}{i}".encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{NAME} {DATE}".encode()))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("dicom", dicom_header()))
    nibabel.save(image, path)


def dicom_header() -> bytes:
    ds = Dataset()
    ds.PatientName, ds.PatientID = f"{NAME}^A", NAME
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, implicit_vr=True, little_endian=True)
    return buffer.getvalue()


def nrrd_file(path: Path, i: int, defect: bool) -> None:
    header = {"content": f"{NAME}{i}", "patient": NAME, "date": DATE}
    nrrd.write(str(path), pixels_of(i, defect)[:, :, None], header)


def meta_image_file(path: Path, i: int, defect: bool) -> None:
    lines = f"ObjectType = Image\nNDims = 3\nComment = {NAME}{i}\nName = {NAME}\nAcquisitionDate = {DATE}\nBinaryData = True\n"
    lines += "DimSize = 18 16 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    path.write_bytes(lines.encode() + pixels_of(i, defect).tobytes())


def png_file(path: Path, i: int, defect: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", f"{NAME}{i}")
    info.add_text("Comment", f"{NAME} {DATE}", zip=True)
    info.add_itxt("Author", NAME, zip=True)
    Image.fromarray(pixels_of(i, defect).clip(0, 255).astype(np.uint8)).save(path, pnginfo=info)


def jpeg_file(path: Path, i: int, defect: bool) -> None:
    exif = Image.Exif()
    exif[270], exif[306], exif[315] = f"{NAME}{i}", DATE, NAME
    image = Image.fromarray(pixels_of(i, defect).clip(0, 255).astype(np.uint8))
    image.save(path, exif=exif, comment=NAME.encode(), quality=95)


def tiff_file(path: Path, i: int, defect: bool) -> None:
    tifffile.imwrite(
        path,
        pixels_of(i, defect),
        description=f"{NAME}{i}",
        software=NAME,
        metadata=None,
        extratags=[(315, 2, 0, NAME, True)],
    )


KINDS = {
    "dicom": ("", dicom_file), "nifti": (".nii.gz", nifti_file), "nrrd": (".nrrd", nrrd_file),
    "metaimage": (".mha", meta_image_file), "png": (".png", png_file), "jpeg": (".jpg", jpeg_file), "tiff": (".tif", tiff_file),
}  # fmt: skip


def contents(data: bytes) -> Iterator[bytes]:
    """Bytes, and what is packed in them: gzip, zip, text of PNG, files inside of a page."""
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield from contents(gzip.decompress(data))
    elif data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from contents(archive.read(name))
    elif data.startswith(b"\x89PNG"):
        for found in re.finditer(rb"(?:zTXt|iTXt|iCCP)[^\0]*\0.*", data, re.DOTALL):
            for start in range(min(len(found[0]), 99)):
                with contextlib.suppress(zlib.error):
                    yield zlib.decompressobj().decompress(found[0][start:])
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]+)", data):
        yield from contents(base64.b64decode(found[1]))


def leaks(texts: dict[str, bytes]) -> list[tuple[str, str]]:
    return [
        (name, token.decode())
        for name, data in texts.items()
        for part in contents(data)
        for token in TOKENS
        if token in part or token.decode().encode("utf-16-le") in part
    ]


def test_the_search_finds_what_is_packed(tmp_path: Path):
    for kind, (suffix, write) in KINDS.items():
        write(tmp_path / f"a{suffix}", 0, False)
        data = (tmp_path / f"a{suffix}").read_bytes()
        for packed in (data, gzip.compress(data), b"<img src='data:image/png;base64," + base64.b64encode(data) + b"'>"):
            assert {token for _, token in leaks({kind: packed})} >= {NAME}, kind
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", ROOT)
    assert leaks({"zip": buffer.getvalue()}) == [("zip", ROOT)]
    assert len(ELEMENTS) > 1300
    assert leaks({"nothing": b"CT 18910316"}) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_command_writes_an_identifier(kind: str, tmp_path: Path, run: Run):
    suffix, write = KINDS[kind]
    data = tmp_path / "data"
    data.mkdir()
    rows = ["path,split,label,type"]
    for i in range(52):
        defect = i >= 48
        write(data / f"{i:02d}{suffix}", i, defect)
        rows.append(f"{i:02d}{suffix},{'train' if i < 44 else 'test'},{int(defect)},{'spot' if defect else 'good'}")
    whole = (data / f"00{suffix}").read_bytes()
    damaged = {
        "cut": whole[: len(whole) * 2 // 3],
        "head": whole[:700],
        "changed": whole.replace(b"US\x02\0", b"PN\x02\0", 3),
    }
    damaged["words"] = whole.replace(b"1\\1 ", NAME.encode() + b" ", 1)
    (data / "table.csv").write_text("\n".join(rows) + "\n")
    for name, changed in damaged.items():
        (data / f"{name}{suffix}").write_bytes(changed)
        rows.append(f"{name}{suffix},train,0,good")
    (data / "more.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    small = ("--set", "size=16")
    commands: list[tuple[object, ...]] = [
        ("check", data / "more.csv"),
        ("check", data),
        ("audit", data / "table.csv", "--method", "zscore", "--folds", 2, "--show", 2, "--out", out / "audit"),
        ("fit", data / "more.csv", "--method", "zscore", "--false-alarms", 0.1, *small, "--out", out / "model"),
        (
            "fit",
            data / "more.csv",
            "--method",
            "autoencoder",
            "--steps",
            3,
            *small,
            "--set",
            "width=4",
            "--out",
            out / "net",
        ),
        ("info", out / "model"),
        ("score", out / "model", data / "more.csv", "--out", out / "results"),
        ("score", out / "net", data / "more.csv", "--out", out / "restored"),
        ("score", out / "model", data, "--out", out / "unlabelled"),
        ("evaluate", out / "results"),
        ("report", out / "results"),
        ("report", out / "restored"),
        ("dicom", out / "results", "--out", out / "dicom"),
        ("export", out / "net", "--out", out / "exported"),
        ("compare", data / "table.csv", "--methods", "zscore,pca", *small, "--out", out / "compared"),
        (
            "select",
            data / "table.csv",
            "--method",
            "zscore",
            "--trials",
            2,
            "--try",
            "floor=0.1|0.2",
            "--out",
            out / "selected",
        ),
    ]
    said: dict[str, bytes] = {}
    for k, words in enumerate(commands):
        code = run(*words)
        said[f"{k}: {words[0]}"] = f"{run.out}\n{run.err}".encode("utf-8", "surrogateescape")
        expected = words[0] == "check" or (words[0] == "dicom" and kind != "dicom")
        assert (code != 0) == expected, (words, run.err)
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert {"results/report.html", "results/metrics.json", "model/detector.json", "selected/study.db"} <= set(files)
    assert any(name.startswith("results/maps/") for name in files)
    written = {name: path.read_bytes() for name, path in files.items() if not name.endswith(".dcm")}
    objects = {name: path.read_bytes() for name, path in files.items() if name.endswith(".dcm")}
    assert bool(objects) == (kind == "dicom")
    assert leaks(said) == []
    assert leaks(written) == []
    assert len(leaks(objects)) >= len(objects), "they belong to the patient's study"
