"""WebDataset tars: what belongs together, places instead of unpacking, and hostile members."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalcy import DataError, open_data
from normalcy.data.formats import Limits


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            one = tarfile.TarInfo(name)
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (16, 12), dtype=np.uint8) for _ in range(6)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples(tmp_path: Path, images: list[np.ndarray], form: int):
    long = "folder-" + "x" * 120 + "/" + "y" * (60 if form == tarfile.USTAR_FORMAT else 120)
    mask = (images[1] > 200).astype(np.uint8) * 255
    array = io.BytesIO()
    np.save(array, images[2].astype(np.uint16) * 200)
    path = write(
        tmp_path / "a.tar",
        {
            "000.png": png(images[0]),
            "000.cls": b"0\n",
            "001.mask.png": png(mask),
            "001.png": png(images[1]),
            "001.json": json.dumps({"label": 1, "case": "p7", "type": "hole", "split": "test", "other": [1]}).encode(),
            "002.npy": array.getvalue(),
            f"{long}.png": png(images[3]),
            "readme.txt": b"no image",
            "003.cls": b"1",
        },
        form,
    )
    data = open_data(str(path))
    assert [item.path for item in data.items] == ["a/000.png", "a/001.png", "a/002.npy", f"a/{long}.png"]
    assert [(i.label, i.case, i.type, i.split) for i in data.items[:2]] == [
        (0, "a/000.png", None, None),
        (1, "p7", "hole", "test"),
    ]
    assert np.array_equal(data.read(0)[0], images[0])
    assert np.array_equal(data.read(2)[0], images[2].astype(np.uint16) * 200)
    assert np.array_equal(data.read(3)[0], images[3])
    assert np.array_equal(data.mask(1), mask > 0)
    assert data.mask(2) is None
    assert data.reasons == {"a/readme.txt": "no image, label or mask", "a/003.cls": "belongs to no image"}


def test_braces_patterns_and_order(tmp_path: Path, images: list[np.ndarray]):
    for k in range(12):
        write(tmp_path / f"p-{k:03}.tar", {"x.png": png(images[k % 6])})
    ranged = open_data(f"{tmp_path}/p-{{008..011}}.tar")
    assert [item.path for item in ranged.items] == [f"p-{k:03}/x.png" for k in range(8, 12)]
    assert len(open_data(f"{tmp_path}/p-*.tar")) == 12
    assert len(open_data(f"{tmp_path}/p-{{000,005}}.tar")) == 2
    with pytest.raises(DataError, match="No such file"):
        open_data(f"{tmp_path}/p-{{000..020}}.tar")
    with pytest.raises(DataError, match="expected 1 to"):
        open_data(f"{tmp_path}/p-{{000..999999999}}.tar")


def special(kind: bytes, name: str, link: str = "") -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.type, one.linkname = kind, link
    return one


def test_special_members_are_passed_over(tmp_path: Path, images: list[np.ndarray]):
    path = write(
        tmp_path / "a.tar",
        {
            "good.png": png(images[0]),
            "l": special(tarfile.SYMTYPE, "link.png", "/etc/passwd"),
            "h": special(tarfile.LNKTYPE, "hard.png", "good.png"),
            "d": special(tarfile.CHRTYPE, "device.png"),
            "p": special(tarfile.FIFOTYPE, "pipe.png"),
            "f": special(tarfile.DIRTYPE, "folder"),
            "../out.png": png(images[1]),
            "/etc/out.png": png(images[1]),
            "a/../../b.png": png(images[1]),
        },
    )
    data = open_data(str(path))
    assert [item.path for item in data.items] == ["a/good.png"]
    assert set(data.reasons.values()) == {"a link", "a device", "a pipe", "a name that leads out of the tar"}
    assert len(data.reasons) == 7


def test_damaged_tars_are_one_error(tmp_path: Path, images: list[np.ndarray]):
    whole = write(tmp_path / "a.tar", {"0.png": png(images[0]), "1.png": png(images[1])}).read_bytes()

    def refused(data: bytes, match: str) -> None:
        (tmp_path / "b.tar").write_bytes(data)
        with pytest.raises(DataError, match=match):
            open_data(str(tmp_path / "b.tar")).read(1)

    refused(b"", "cut off")
    refused(whole[:100], "cut off")
    refused(b"\x1f\x8b" + whole, "decompress it")
    refused(whole[:700].replace(b"0.png", b"9.png") + whole[700:], "cannot be read as a tar")
    second = whole.index(b"1.png")
    refused(whole[: second + 600], "cut off")
    negative = tarfile.TarInfo("n.png")
    header = bytearray(negative.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # -1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(bytes(header) + whole, "negative size")
    huge = special(tarfile.XHDTYPE, "x")
    huge.size = 2**33
    refused(huge.tobuf(tarfile.GNU_FORMAT) + whole, "a header of")


def test_contradictions_and_limits(tmp_path: Path, images: list[np.ndarray]):
    image = png(images[0])

    def refused(members: dict[str, bytes], match: str, limits: Limits | None = None) -> None:
        path = write(tmp_path / "c.tar", members)
        with pytest.raises(DataError, match=match):
            open_data(str(path), **({} if limits is None else {"limits": limits})).read(0)

    refused({"0.png": image, "0.cls": b"0", "0.json": b'{"label": 1}'}, "contradicts the label")
    refused({"0.png": image, "0.cls": b"cat"}, "expected the label")
    refused({"0.png": image, "0.json": b"{"}, "not valid JSON")
    refused({"0.png": image, "0.json": b"[" * 60_000}, "not valid JSON")
    refused({"0.png": image, "0.json": b'{"split": "half"}'}, "expected the split")
    refused({"0.png": image, "0.json": b" " * 70_000}, "at most 65,536")
    refused({"0.txt": b"a"}, "expected images, got 1 other files")
    refused({"0.png": image}, "at most 10 are read", Limits(file_bytes=10))
    refused({f"{k}.png": image for k in range(5)}, "more than 4 files", Limits(entries=4))
