import io
import resource
import struct
import sys
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from normalcy.data.formats import Limits
from normalcy.data.images import (
    channel_first,
    decode_image,
    decode_mask,
    encode_npy,
    encode_png,
    image_size,
    read_image,
    read_mask,
    write_image,
    write_raw,
)
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
    """A palette gives three channels whatever its colours are: a set of palette images keeps one number of channels."""
    index = pixels((7, 9)) % 4
    for colours in ([[0, 0, 0], [255, 0, 0], [0, 255, 9], [1, 2, 3]], [[0] * 3, [90] * 3, [17] * 3, [255] * 3]):
        image = Image.fromarray(index, "P")
        image.putpalette(np.array(colours, np.uint8).tobytes())
        truth = np.array(colours, np.uint8).T[:, index]
        for name in ("a.png", "a.tif", "a.gif", "a.bmp"):
            image.save(tmp_path / name)
            same(read_image(tmp_path / name), truth)
        image.save(tmp_path / "a.png", transparency=bytes([0, 99, 255, 255]))
        same(read_image(tmp_path / "a.png"), truth)
    Image.fromarray(index > 1).save(tmp_path / "a.png")
    same(read_image(tmp_path / "a.png"), np.where(index > 1, 255, 0).astype(np.uint8)[None])


def test_grey_bmp_stays_grey(tmp_path):
    """BMP has no grey type: 256 steps from black to white are its way to say it."""
    array = pixels((7, 9))
    Image.fromarray(array).save(tmp_path / "a.bmp")
    same(read_image(tmp_path / "a.bmp"), array[None])


def test_formats_that_pillow_reads(tmp_path):
    array = pixels((16, 24, 3))
    for name, options in (
        ("a.webp", {"lossless": True}),
        ("a.jp2", {}),
        ("b.jp2", {"no_jp2": True}),
    ):
        Image.fromarray(array).save(tmp_path / name, **options)
        same(read_image(tmp_path / name), first(array))
        assert image_size((tmp_path / name).read_bytes(), name) == (16, 24)
    smooth = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None] * 9, (16, 24, 3)).copy()
    for name, tolerance in (("a.jfif", 3), ("a.avif", 9), ("b.webp", 9)):
        Image.fromarray(smooth).save(tmp_path / name, "JPEG" if name == "a.jfif" else None, quality=95)
        got = read_image(tmp_path / name)
        assert got.shape == (3, 16, 24)
        assert np.abs(got.astype(int) - first(smooth)).max() <= tolerance
    Image.fromarray(array[:, :, 0]).save(tmp_path / "a.gif")  # grey, but GIF has only palettes
    same(read_image(tmp_path / "a.gif"), np.repeat(array[None, :, :, 0], 3, 0))


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(pixels((16, 24, 3), seed=k)) for k in range(3)]
    for name in ("a.gif", "a.webp", "a.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=rf"{name}: .*an animation; save the frame that is meant"):
            read_image(tmp_path / name)


def test_jpeg_2000_and_avif_of_other_depths_are_refused(tmp_path):
    deep = pixels((16, 24), np.uint16)
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(deep, reversible=True))
    with pytest.raises(DataError, match="other than 8 bits"):
        read_image(tmp_path / "a.jp2")
    (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(pixels((16, 24, 3), np.uint16) >> 6, bitspersample=10))
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "a.avif")


def test_exif_orientation_of_webp(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    array = pixels((16, 24, 3))
    Image.fromarray(array).save(tmp_path / "a.webp", lossless=True, exif=exif)
    same(read_image(tmp_path / "a.webp"), first(np.rot90(array, -1)))
    assert image_size((tmp_path / "a.webp").read_bytes(), "a") == (24, 16)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iTXt", b"\xff\xfe\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"tEXt", b"\x80" * 200),
        chunk(b"iCCP", b"name\0\0not compressed"),
        chunk(b"tEXt", b"damaged")[:-1] + b"?",
    ],
    ids=["long text", "compressed text", "international text", "no key", "bad profile", "bad checksum"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_text_and_profiles_in_png_do_not_matter(extra, dtype):
    array = pixels((7, 9, 3), dtype)
    data = imagecodecs.png_encode(array)
    same(decode_image(data[:33] + extra + data[33:], "a.png"), first(array))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_200_megapixels_are_read_and_the_setting_of_pillow_stays(suffix):
    before = Image.MAX_IMAGE_PIXELS
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((10_000, 20_000), np.uint8)).save(buffer, suffix)
    array = decode_image(buffer.getvalue(), "a")
    assert array.shape == (1, 10_000, 20_000)
    assert not array.any()
    assert image_size(buffer.getvalue(), "a") == (10_000, 20_000)
    assert before == Image.MAX_IMAGE_PIXELS == 89_478_485


def test_limits_can_be_set(tmp_path):
    array = pixels((20, 30))
    for name in ("a.png", "a.tif", "a.jpg", "a.bmp"):
        Image.fromarray(array).save(tmp_path / name)
    np.save(tmp_path / "a.npy", array)
    for path in tmp_path.iterdir():
        assert read_image(path, limits=Limits(values=600)).shape == (1, 20, 30)
        with pytest.raises(DataError, match=r"600 values, more than the limit of 599"):
            read_image(path, limits=Limits(values=599))
        with pytest.raises(DataError, match=r"600 bytes when decoded, more than the limit of 599"):
            read_image(path, limits=Limits(decoded_bytes=599))
        with pytest.raises(DataError, match=r"bytes, at most 99 are read"):
            read_image(path, limits=Limits(file_bytes=99))


@pytest.mark.parametrize("big", [False, True])
def test_tiff_pages_are_counted_first(tmp_path, big):
    """20,000 pages took 25 s; the chain that never ends, too."""
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big) as file:
        for _ in range(30):
            file.write(np.zeros((16, 16), np.uint8), contiguous=False, metadata=None)
    assert read_image(tmp_path / "a.tif", limits=Limits(pages=30)).shape == (30, 16, 16)
    with pytest.raises(DataError, match="has more than 29 pages"):
        read_image(tmp_path / "a.tif", limits=Limits(pages=29))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first_page, last = file.pages[0].offset, file.pages[29].offset
    width, entry, count = (8, 20, "<Q") if big else (2, 12, "<H")
    (tags,) = struct.unpack_from(count, data, last)
    struct.pack_into("<Q" if big else "<I", data, last + width + entry * tags, first_page)
    started = time.monotonic()
    with pytest.raises(DataError, match="has more than 1,024 pages"):
        decode_image(bytes(data), "a.tif")
    assert time.monotonic() - started < 1


def test_compressed_bombs_in_tiff_take_no_more_than_is_claimed(tmp_path):
    """A strip that decompresses to 1 GiB in an image of 16 x 16."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((16, 16), np.uint8), compression="zlib")
    data = bytearray(buffer.getvalue())
    bomb = zlib.compress(bytes(2**30), 1)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        for name, value in (("StripOffsets", len(data)), ("StripByteCounts", len(bomb))):
            tag = tags[name]
            struct.pack_into("<" + {3: "H", 4: "I"}[int(tag.dtype)], data, tag.valueoffset, value & 0xFFFFFFFF)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(DataError):
        assert decode_image(bytes(data) + bomb, "a.tif").shape == (1, 16, 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def masked(values, suffix="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, suffix, **options)
    return buffer.getvalue()


def test_jpeg_masks_are_thresholded_with_a_warning():
    truth = np.zeros((64, 64), bool)
    truth[17:39, 22:45] = True
    drawn = np.where(truth, 255, 0).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(drawn[::2, ::2]).resize((64, 64), Image.Resampling.BILINEAR))
    for data in (masked(drawn, "JPEG", quality=50), masked(np.stack([drawn] * 3, -1), "JPEG", quality=50)):
        with pytest.warns(UserWarning, match="masks with more than two values"):
            got = decode_mask(data, "m.jpg")
        assert (got != truth).mean() < 0.004
    with pytest.warns(UserWarning, match="thresholded at half of their range"):
        same(decode_mask(masked(smooth), "m.png"), smooth > 127.5)
    noisy = (pixels((64, 64)) % 3).astype(np.uint8)
    with pytest.warns(UserWarning, match="thresholded"):
        assert not decode_mask(masked(noisy, "JPEG", quality=100), "m.jpg").any()
    with pytest.warns(UserWarning, match="thresholded"):
        assert decode_mask(masked(255 - noisy, "JPEG", quality=100), "m.jpg").all()


def test_masks_of_classes_and_colours_stay_whole():
    classes = (pixels((9, 11)) % 6).astype(np.uint8)
    coloured = np.zeros((9, 11, 3), np.uint8)
    coloured[2:4, :, 0], coloured[6:7, :, 1] = 64, 200
    palette = Image.fromarray(classes, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 64, 0, 0, 7, 7, 7])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(decode_mask(masked(classes), "m.png"), classes != 0)
        same(decode_mask(masked(coloured), "m.png"), (coloured != 0).any(-1))
        same(decode_mask(buffer.getvalue(), "m.png"), classes != 0)
        same(decode_mask(masked(np.where(classes > 2, 255, 0).astype(np.uint8)), "m.png"), classes > 2)


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
        (b"GIF89a" + bytes(50), "cannot be read"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(50), "cannot be read"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "cannot be read"),
        (b"\xff\x4f\xff\x51" + bytes(50), "cannot be read"),
        (b"\0\0\0\x1cftypavif" + bytes(50), "cannot be read"),
        (pickled(), "Python objects"),
        (npy_header((10**9, 10**9)), "truncated"),
        (npy_header((-5, 3)), "truncated"),
        (b"\x93NUMPY\x03\x00" + bytes(40), "version"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 6) + b"{[[[[\n", "cannot be read"),
        (png_claiming(100_000, 100_000, 8, 2), "30,000,000,000 values"),
        (png_claiming(100_000, 100_000, 16, 2), "30,000,000,000 values"),
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


@pytest.mark.parametrize("without_imagecodecs", [False, True])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 1, 3), (4, 6, 4)])
def test_encode_png(shape, compress, without_imagecodecs, monkeypatch):
    if without_imagecodecs:
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for given in (pixels, np.asfortranarray(pixels)):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(given, compress=compress)))), pixels)
    if pixels.ndim == 2:
        shown = Image.open(io.BytesIO(encode_png(pixels, bytes(range(256)) * 3, compress)))
        assert shown.mode == "P"
        np.testing.assert_array_equal(np.asarray(shown), pixels)
        np.testing.assert_array_equal(
            np.asarray(shown.convert("RGB")).reshape(-1, 3)[0], (np.arange(3) + 3 * int(pixels.flat[0])) % 256
        )


@pytest.mark.parametrize(
    "values", [np.eye(3)[::2], np.zeros((0, 2), ">f8"), np.arange(24.0).reshape(2, 3, 4).T, np.eye(2) > 0]
)
def test_encode_npy(values):
    same(np.load(io.BytesIO(b"".join(encode_npy(values)))), values.astype(np.float32))


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
