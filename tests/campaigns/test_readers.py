"""A small run of the campaign; its last long one is in ``results/readers.json``. And what the long ones met, one by one."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import readers
import tifffile

import normalcy.data.stores
from normalcy.data.images import decode_image
from normalcy.data.open import open_data
from normalcy.data.volumes import decode_volume, volume_space, write_volume
from normalcy.errors import DataError

HERE = Path(__file__).parent
FORMATS = 19


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-W",
        "ignore",
        str(HERE / "readers.py"),
        "600",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "result.json"),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["cases"], result["failures"]) == (600, [])
    assert len(result["outcomes"]) == FORMATS
    ends = [outcomes.get(end, 0) for end in ("read", "refused") for outcomes in result["outcomes"].values()]
    assert sum(ends) == 600
    assert min(sum(ends[:FORMATS]), sum(ends[FORMATS:])) > 100, "some files are harmless, some are not"


def test_the_committed_result_holds_the_bounds() -> None:
    result = json.loads((HERE / "results" / "readers.json").read_text())
    assert result["cases"] == 20_000
    assert result["failures"] == []
    assert set(result["outcomes"]) == set(readers.WAYS)
    assert result["longest_cpu_seconds"] <= result["bounds"]["cpu_seconds"] == 2
    assert result["largest_bytes"] <= result["bounds"]["bytes"] == 2**30
    assert result["commit"]
    assert result["processor"]


def test_valid_files_are_read(tmp_path: Path) -> None:
    """Else the campaign would only show that everything is refused. Whole slides as DICOM are refused."""
    folder = tmp_path / "a"
    folder.mkdir()
    readers.surroundings(folder)
    files = readers.seeds()
    assert set(files) == set(readers.WAYS)
    for key, of_format in files.items():
        for name, data in of_format:
            path = folder / {"dicom series": "series", "diffusion": "diffusion"}.get(key, "") / name
            path.write_bytes(data)
            if b"TILED_FULL" in data:
                with pytest.raises(DataError, match="a whole slide as tiles"):
                    readers.read_all(key, path)
            else:
                assert readers.read_all(key, path) > 0, (key, name)
            path.unlink()


@pytest.mark.parametrize("key", readers.WAYS)
def test_mutations_change_fields_where_they_are(key: str) -> None:
    rng = random.Random(0)
    name, data = readers.seeds()[key][0]
    for way in readers.WAYS[key]:
        changed = [way(data, rng) for _ in range(30)]
        assert len(set(changed) - {data}) > 10, (name, way)


def test_a_failure_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time, memory, files that are written, texts that quote, other errors and processes that die."""
    files = {"npy": readers.seeds()["npy"]}

    def slow(key: str, path: Path) -> int:
        end = readers.time.process_time() + 0.3
        while readers.time.process_time() < end:
            pass
        return 1

    def large(key: str, path: Path) -> int:
        return len(b"x" * (80 * 2**20))

    def writes(key: str, path: Path) -> int:
        (tmp_path / "left").write_bytes(b"")
        return 1

    def quotes(key: str, path: Path) -> int:
        raise DataError("a: Mustermann^Erika is no number.")

    def fails(key: str, path: Path) -> int:
        raise KeyError("x")

    def dies(key: str, path: Path) -> int:
        os.kill(os.getpid(), 11)
        return 1

    monkeypatch.setattr(readers, "SECONDS", 0.2)
    monkeypatch.setattr(readers, "MEMORY", 64 * 2**20)
    sys.addaudithook(readers.watch_writes)
    faults = {
        slow: "took 0.",
        large: " MiB",
        writes: "wrote: ",
        quotes: "quotes the file",
        fails: "KeyError",
        dies: "SIGSEGV",
    }
    for read, said in faults.items():
        monkeypatch.setattr(readers, "read_all", read)
        (one, two) = readers.block([0, 1], 0, files, tmp_path)
        assert said in one["failure"], (read.__name__, one)
        assert said in two["failure"]


# -- what it met -------------------------------------------------------------------------------------------------------------


def refused(data: bytes, name: str, folder: Path) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_data(folder / name).read(0)
    return str(caught.value)


def tagged(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF with another value for a tag."""
    out = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[0].tags[tag]
        struct.pack_into("<" + {3: "H", 4: "I"}[int(found.dtype)], out, found.valueoffset, value)
    return bytes(out)


@pytest.mark.parametrize(
    ("tag", "value"), [(256, 0), (257, 0), (256, 2**16 - 1), (257, 60_000), (277, 0), (322, 0), (258, 7)]
)
def test_slides_with_a_header_that_lies(tag: int, value: int, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tagged(readers.seeds()["slide"][0][1], tag, value))
    with pytest.raises(DataError, match=r"a\.tif: .*(cannot be read as a slide|claims|is damaged|are damaged)"):
        open_data(f"slides:{tmp_path / 'a.tif'},tile=32,tissue=0.1").read(0)


def test_a_png_that_claims_more_than_it_holds_takes_no_memory() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    before = readers.memory(reset=True)
    with pytest.raises(DataError, match="truncated: it claims 30000 x 30000 pixels, more than its bytes can hold"):
        decode_image(data, "a.png")
    assert readers.memory() - before < 2**24


def test_nifti_whose_rotation_is_none_is_placed_by_its_other_form(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), None)
    image.header.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    image.header["qform_code"], image.header["quatern_b"] = 1, 1e30
    data = image.to_bytes()
    _, space = decode_volume(data, "a.nii")
    np.testing.assert_array_equal(volume_space(data, "a.nii").affine, space.affine)
    np.testing.assert_array_equal(space.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    (tmp_path / "a.nii").write_bytes(data)
    part = open_data(f"{tmp_path / 'a.nii'}[z=2:4]")
    lies = part.space(0)
    assert lies is not None
    write_volume(tmp_path / "part.nii.gz", part.read(0), lies, like_file=True)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "part.nii.gz").affine[:3, 3], [0, 0, 8])


def test_arrays_that_are_damaged_have_one_reason(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((5, 8, 9), np.uint8))
    data = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        body = archive.read("images.npy")
    for head in (
        b"{'descr': '|u1', 'fortran_order'",
        b"{'descr': |u1}",
        b"(" * 99,
        b"{'descr': x, 'fortran_order': False, 'shape': ()}",
    ):
        changed = body[:8] + struct.pack("<H", len(head)) + head + body[128:]
        assert "cannot be read as an image (its header is damaged or cut off)" in refused(changed, "a.npy", tmp_path)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("images.npy", changed)
        assert "cannot be read as .npz arrays (its header is damaged or cut off)" in refused(
            packed.getvalue(), "a.npz", tmp_path
        )
    place = data.index(b"PK\1\2")
    for at, value in ((42, b"\xff\xff\xff\x7f"), (46, b"\xff\xfe"), (20, b"\0\0\0\0"), (10, b"\x63\0")):
        changed = data[: place + at] + value + data[place + at + len(value) :]
        said = refused(changed, "a.npz", tmp_path)
        assert "its members are damaged" in said or "claims the shape" in said or "its header" in said, said
    assert "not a zip file, or one that is cut off" in refused(data[:-30], "a.npz", tmp_path)


@pytest.mark.parametrize("key", ["tiff", "metaimage", "nifti", "nrrd"])
def test_no_reason_quotes_what_a_file_holds(key: str, tmp_path: Path) -> None:
    """Free text that stands where a number or a term should, as a damaged file may have it."""
    name, data = readers.seeds()[key][0]
    secret = readers.SECRET
    if key == "tiff":
        damaged = [tagged(data, tag, data.index(secret.encode())) for tag in (256, 262, 258, 277)]
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            entry = file.pages[0].tags[258].offset  # BitsPerSample becomes text that lies elsewhere
            text = file.pages[0].tags[270]
        for tag in (259, 317, 258, 339):
            damaged.append(
                data[:entry] + struct.pack("<HHII", tag, 2, len(secret), text.valueoffset) + data[entry + 12 :]
            )
    elif key == "metaimage":
        damaged = [
            data.replace(b"DimSize = 9 8 7", b"DimSize = " + other.encode()) for other in (secret, f"9 8 {secret}")
        ]
        damaged += [data.replace(b"NDims = 3\n", b"NDims = 3"), data.replace(b"MET_SHORT", secret.encode())]
    elif key == "nrrd":
        damaged = [
            data.replace(b"sizes: 9 8 7", f"sizes: 9 8 {secret}".encode()),
            data.replace(b"type: int16", f"type: {secret}".encode()),
        ]
        damaged += [
            data.replace(b"encoding: raw", f"encoding: {secret}".encode()),
            data.replace(b"dimension: 3", secret.encode()),
        ]
    else:
        damaged = [secret.encode().ljust(n, b"x") + data[n:] for n in (40, 70, 110)]
        damaged += [data[:40] + secret.encode() + data[40 + len(secret) :]]
    for changed in damaged:
        assert changed != data
        (tmp_path / name).write_bytes(changed)
        assert "Mustermann" not in reason_of(tmp_path / name)


def reason_of(path: Path) -> str:
    """Why a file cannot be read; nothing where it can."""
    try:
        open_data(path).read(0)
    except DataError as error:
        return str(error)
    return ""


def test_parquet_with_text_that_is_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"path": ["0.png", "äöüß.png"]}), buffer, compression="none", use_dictionary=False
    )
    data = buffer.getvalue().replace("äöüß".encode(), b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe")
    assert "cannot be read as Parquet (damaged or cut off)" in refused(data, "a.parquet", tmp_path)
    assert "cannot be read as Parquet (damaged or cut off)" in refused(data[:-9], "a.parquet", tmp_path)


def test_long_cells_are_refused_without_being_said(tmp_path: Path) -> None:
    for column, row in (
        ("path", "x" * 5000),
        ("path,split", "a.png," + "y" * 5000),
        ("path,label", "a.png," + "z" * 5000),
    ):
        said = refused(f"{column}\n{row}\n".encode(), "a.csv", tmp_path)
        assert "characters, at most 4,096 are read" in said
        assert len(said.replace(str(tmp_path), "")) < 200
    said = refused(b"file," + b"x" * 100_000 + b"\n1,2\n", "a.csv", tmp_path)
    assert "expected a column 'path'" in said
    assert len(said) < 500


def test_a_row_that_names_a_folder_of_much_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalcy.data.stores, "_SERIES_FILES", 20)
    (tmp_path / "all/below").mkdir(parents=True)
    for k in range(25):
        (tmp_path / f"all/below/{k}").touch()
    assert "holds more files and folders than are read" in refused(b"path\nall\n", "a.csv", tmp_path)


def test_circles_of_directories_in_a_slide_end(tmp_path: Path) -> None:
    """A chain that leads back to a directory but the first."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for _ in range(3):
            file.write(readers.tissue(), tile=(32, 32), photometric="rgb", metadata=None, contiguous=False)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as read:
        second, last = read.pages[1].offset, read.pages[2].offset
    struct.pack_into("<I", data, last + 2 + 12 * struct.unpack_from("<H", data, last)[0], second)
    (tmp_path / "a.tif").write_bytes(data)
    started = readers.time.process_time()
    with pytest.raises(DataError, match=r"a\.tif: cannot be read as a slide"):
        open_data(f"slides:{tmp_path / 'a.tif'},tile=32,tissue=0.1").read(0)
    assert readers.time.process_time() - started < 1


def test_a_tiff_that_claims_more_strips_than_it_has_is_refused_soon(tmp_path: Path) -> None:
    data = readers.tiff(np.zeros((64, 64), np.uint8), tile=(16, 16))
    started = readers.time.process_time()
    assert "claims more tiles or strips than it has" in refused(tagged(data, 256, 60_000), "a.tif", tmp_path)
    assert readers.time.process_time() - started < 1


def test_names_of_columns_stay_on_one_line(tmp_path: Path) -> None:
    assert "\n" not in refused(b'"a\nb",label\n1,2\n', "a.csv", tmp_path)


def test_arrays_of_too_few_axes_are_refused(tmp_path: Path) -> None:
    for shape in ((), (5,), (8, 9)):
        buffer = io.BytesIO()
        np.savez(buffer, images=np.zeros(shape, np.uint8), labels=np.zeros(5))
        assert "expected images (N, H, W) or (N, H, W, C), got an array" in refused(
            buffer.getvalue(), "a.npz", tmp_path
        )
