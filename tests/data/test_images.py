import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from normalcy.data.images import channel_first, decode_image, image_size, read_image, read_mask, write_image, write_raw
from normalcy.errors import DataError


def pixels(shape, dtype=np.uint8, seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def first(array):
    """The reference: (H, W) or (H, W, C) to (C, H, W)."""
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def same(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    assert got.flags["C_CONTIGUOUS"]
    assert got.flags.writeable


@pytest.mark.parametrize("channels", [None, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_bits_and_channels(tmp_path, dtype, channels):
    array = pixels((7, 9) if channels is None else (7, 9, channels), dtype)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    same(read_image(tmp_path / "a.png"), first(array))
    assert image_size((tmp_path / "a.png").read_bytes(), "a") == (7, 9)


@pytest.mark.parametrize("suffix", ["bmp", "ppm"])
def test_lossless_formats(tmp_path, suffix):
    array = pixels((7, 9, 3))
    Image.fromarray(array).save(tmp_path / f"a.{suffix}")
    same(read_image(tmp_path / f"a.{suffix}"), first(array))


def test_16_bit_pgm():
    array = pixels((5, 6), np.uint16)
    same(decode_image(b"P5 6 5 65535\n" + array.astype(">u2").tobytes(), "a.pgm"), first(array))


def test_jpeg_channels(tmp_path):
    for array, channels in ((pixels((16, 24)), 1), (pixels((16, 24, 3)), 3)):
        Image.fromarray(array).save(tmp_path / "a.jpg")
        assert read_image(tmp_path / "a.jpg").shape == (channels, 16, 24)
    Image.fromarray(pixels((16, 24, 4)), "CMYK").save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (4, 16, 24)


def test_palette_and_one_bit(tmp_path):
    index = pixels((7, 9)) % 4
    for colours, expected in (
        ([[0, 0, 0], [255, 0, 0], [0, 255, 9], [1, 2, 3]], 3),
        ([[0] * 3, [90] * 3, [17] * 3, [255] * 3], 1),
    ):
        image = Image.fromarray(index, "P")
        image.putpalette(np.array(colours, np.uint8).tobytes())
        image.save(tmp_path / "a.png")
        image.save(tmp_path / "a.tif")
        truth = np.array(colours, np.uint8).T[:expected, index]
        same(read_image(tmp_path / "a.png"), truth)
        same(read_image(tmp_path / "a.tif"), truth)
    Image.fromarray(index > 1).save(tmp_path / "a.png")
    same(read_image(tmp_path / "a.png"), np.where(index > 1, 255, 0).astype(np.uint8)[None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_viewers_show_it(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    smooth = Image.fromarray(np.add.outer(np.arange(24), 3 * np.arange(40)).astype(np.uint8))
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    same(decode_image(buffer.getvalue(), "a.jpg"), shown[None])
    assert image_size(buffer.getvalue(), "a.jpg") == shown.shape

    array, buffer = pixels((24, 40), np.uint16), io.BytesIO()
    tifffile.imwrite(buffer, array, extratags=[(274, "H", 1, orientation, True)])
    image = Image.fromarray(array)
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    same(decode_image(buffer.getvalue(), "a.tif"), expected[None])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_tiff_types(tmp_path, dtype, compression):
    array = pixels((33, 21), dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, byteorder=">")
    same(read_image(tmp_path / "a.tif"), array[None])
    assert image_size((tmp_path / "a.tif").read_bytes(), "a") == (33, 21)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((32, 48, 3), {"photometric": "rgb"}),
        ((32, 48, 3), {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}),
        ((32, 48, 5), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((3, 32, 48), {"photometric": "rgb", "planarconfig": "separate"}),
        ((5, 32, 48), {"photometric": "minisblack"}),  # pages
        ((5, 32, 48), {"imagej": True, "metadata": {"axes": "CYX"}}),
    ],
)
def test_tiff_channels(tmp_path, shape, options):
    array = pixels(shape, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    same(read_image(tmp_path / "a.tif"), array if shape[0] != 32 else first(array))


def test_tiff_white_is_zero_and_bilevel(tmp_path):
    array = pixels((16, 24), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    same(read_image(tmp_path / "a.tif"), 65535 - array[None])
    bits = array > 30000
    for photometric in ("minisblack", "miniswhite"):
        tifffile.imwrite(tmp_path / "a.tif", bits, photometric=photometric)
        shown = bits if photometric == "minisblack" else ~bits
        same(read_image(tmp_path / "a.tif"), np.where(shown, 255, 0).astype(np.uint8)[None])


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_tiff_stacks_are_refused(tmp_path, axes):
    tifffile.imwrite(tmp_path / "a.tif", pixels((5, 32, 48), np.uint16), imagej=True, metadata={"axes": axes})
    with pytest.raises(DataError, match=rf"a\.tif.*axes {axes}"):
        read_image(tmp_path / "a.tif")


def test_tiff_of_two_sizes_is_refused_but_a_thumbnail_is_not(tmp_path):
    big, small = pixels((32, 48)), pixels((9, 21))
    for reduced in (0, 1):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(big, metadata=None)
            file.write(small, metadata=None, subfiletype=reduced)
        if reduced:
            same(read_image(tmp_path / "a.tif"), big[None])
        else:
            with pytest.raises(DataError, match="expected one image, got 2"):
                read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, order):
    for array in (pixels((6, 7), ">u2"), pixels((6, 7, 5), np.float32)):
        np.save(tmp_path / "a.npy", np.asarray(array, order=order))
        same(read_image(tmp_path / "a.npy"), first(array).astype(array.dtype.newbyteorder("=")))
    np.save(tmp_path / "a.npy", pixels((3, 60, 70)))
    with pytest.raises(DataError, match="looks channel-first"):
        read_image(tmp_path / "a.npy")


def npy_header(shape):
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def png_claiming(width, height, depth, kind):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Path("x")], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def bomb_tiff():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((16, 16), np.uint8), compression="zlib")
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            found = file.pages[0].tags[tag]
            struct.pack_into("<" + {3: "H", 4: "I"}[int(found.dtype)], data, found.valueoffset, 60000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello, this is text", "known format"),
        (b"GIF89a" + bytes(50), "known format"),
        (pickled(), "Python objects"),
        (npy_header((10**9, 10**9)), "truncated"),
        (npy_header((-5, 3)), "truncated"),
        (b"\x93NUMPY\x03\x00" + bytes(40), "version"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 6) + b"{[[[[\n", "cannot be read"),
        (png_claiming(100_000, 100_000, 8, 2), "decompression bomb"),
        (png_claiming(100_000, 100_000, 16, 2), "decompression bomb"),
        (png_claiming(10, 10, 16, 2), "cannot be read"),
        (bomb_tiff(), "3,600,000,000 values"),
        (b"II*\0" + bytes(30), "cannot be read"),
    ],
)
def test_hostile_files_are_one_sentence(tmp_path, data, reason):
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(tmp_path / "bad.png")
    assert str(tmp_path / "bad.png") in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "npy"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files(tmp_path, suffix, part):
    array = pixels((40, 50, 3))
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    elif suffix == "tif":
        tifffile.imwrite(path, array, compression="lzw", photometric="rgb")
    else:
        Image.fromarray(array).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"a\.{suffix}: cannot be read"):
        read_image(path)


def test_random_damage_never_escapes():
    random = np.random.default_rng(0)
    for suffix in ("PNG", "JPEG", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels((20, 30, 3))).save(buffer, suffix)
        for _ in range(60):
            data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            data[random.integers(0, min(len(data), 300), 4)] = random.integers(0, 256, 4)
            with suppress(DataError):  # and nothing else
                assert decode_image(data.tobytes(), "a").ndim == 3


def test_missing_file_and_not_finite(tmp_path):
    with pytest.raises(DataError, match=r"none\.png: cannot be opened \(No such file"):
        read_image(tmp_path / "none.png")
    np.save(tmp_path / "a.npy", np.array([[0.0, np.nan], [np.inf, 1.0]]))
    assert read_image(tmp_path / "a.npy").shape == (1, 2, 2)
    with pytest.raises(DataError, match="2 NaN or infinite"):
        read_image(tmp_path / "a.npy", finite=True)
    with pytest.raises(DataError, match="complex"):
        channel_first(np.zeros((3, 3), complex), "a")


def test_mask_is_nonzero_whatever_the_file(tmp_path):
    truth = pixels((8, 9)) > 200
    grey = np.where(truth, 3, 0).astype(np.uint8)
    opaque = np.dstack([grey, grey * 0, grey * 0, np.full_like(grey, 255)])
    for array in (grey, opaque, truth):
        Image.fromarray(array).save(tmp_path / "m.png")
        same(read_mask(tmp_path / "m.png"), truth)
    np.save(tmp_path / "m.npy", truth)
    same(read_mask(tmp_path / "m.npy"), truth)


def test_write_image(tmp_path):
    for array in (pixels((5, 6)), pixels((1, 5, 6)), pixels((3, 5, 6)), pixels((4, 5, 6))):
        write_image(tmp_path / "new" / "a.png", array)
        same(read_image(tmp_path / "new" / "a.png"), array if array.ndim == 3 else array[None])
    write_image(tmp_path / "a.png", np.array([[-1.0, 0.0], [1.0, np.nan]], np.float32))
    same(read_image(tmp_path / "a.png"), np.array([[[0, 128], [255, 0]]], np.uint8))
    write_image(tmp_path / "a.png", np.array([[-1.0, 0.5, 9.0]]), low=0, high=1)
    same(read_image(tmp_path / "a.png"), np.array([[[0, 128, 255]]], np.uint8))
    write_image(tmp_path / "a.png", np.full((3, 3), 7.0))
    write_image(tmp_path / "a.png", np.full((3, 3), np.nan))
    same(read_image(tmp_path / "a.png"), np.zeros((1, 3, 3), np.uint8))


@pytest.mark.parametrize("suffix", ["npy", "tiff"])
def test_write_raw_is_exact(tmp_path, suffix):
    array = pixels((50, 70), np.float32)
    write_raw(tmp_path / f"a.{suffix}", array)
    same(read_image(tmp_path / f"a.{suffix}"), array[None])
    with pytest.raises(DataError, match=r"expected \.npy"):
        write_raw(tmp_path / "a.jpg", array)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", pixels((5, 6)))
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "a.png", pixels((5, 6), seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before
