"""Compressed DICOM: every transfer syntax gives the pixels that an independent decoder, or the uncompressed file, has."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

from normalcy.data.dicom import decode_series, require_pydicom
from normalcy.errors import DataError

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
TWINS = {  # what ITK's reader cannot read, or reads wrongly (run lengths of more than 8 bits in colour): the same image
    "rtdose_rle_1frame.dcm": ("rtdose_1frame.dcm", 1),
    "SC_rgb_rle_16bit.dcm": ("SC_rgb_rle.dcm", 257),
    "SC_rgb_rle_16bit_2frame.dcm": ("SC_rgb_rle_2frame.dcm", 257),
    "SC_rgb_rle_32bit.dcm": ("SC_rgb_rle.dcm", 16843009),
    "SC_rgb_rle_32bit_2frame.dcm": ("SC_rgb_rle_2frame.dcm", 16843009),
    "rtdose_rle.dcm": ("rtdose.dcm", 1),
}
DAMAGED = {"JPEG2000-embedded-sequence-delimiter.dcm"}


def compressed_files() -> list[Path]:
    found = []
    for path in sorted(SHIPPED.glob("*.dcm")):
        header = pydicom.dcmread(path, force=True)
        syntax = header.file_meta.get("TransferSyntaxUID")
        if syntax is not None and syntax.is_encapsulated and "PixelData" in header:
            found.append(path)
    return found


def decoded(data: bytes, name: str = "a.dcm") -> np.ndarray:
    """(frames, rows, columns[, colours]) as stored, from our reader."""
    x, space = decode_series([data], [name], name)
    stored = space.to_file(x)
    return stored.transpose(2, 1, 0, *range(3, stored.ndim))


def test_all_syntaxes_are_among_the_files():
    syntaxes = {
        str(pydicom.dcmread(path).file_meta.TransferSyntaxUID).rpartition(".")[2] for path in compressed_files()
    }
    assert syntaxes >= {"5", "50", "51", "70", "80", "81", "90", "91"}


@pytest.mark.parametrize("path", compressed_files(), ids=lambda path: path.stem)
def test_shipped_files(path: Path):
    if path.name in DAMAGED:
        with pytest.raises(DataError, match="cannot be decoded: damaged"):
            decoded(path.read_bytes())
        return
    x = decoded(path.read_bytes())
    if path.name in TWINS:
        twin, factor = TWINS[path.name]
        np.testing.assert_array_equal(x, decoded((SHIPPED / twin).read_bytes()) * x.dtype.type(factor))
    else:
        expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        np.testing.assert_array_equal(x, expected.reshape(x.shape))


def file_of(frame: bytes, pixels: np.ndarray, syntax: str, bits: int) -> bytes:
    """A DICOM file with one frame that is encoded already."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.SeriesInstanceUID, ds.Modality = "1.2", "OT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape[:2], 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = encapsulate([frame])
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["i", "u"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_lossless_jpeg(kind: str, bits: int, predictor: int, tmp_path: Path):
    """All predictors of process 14, signed and unsigned; ITK's reader agrees."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind == "i" else (0, 2**bits)
    pixels = np.random.default_rng(0).integers(low, high, (24, 17)).astype(f"{kind}{1 if bits == 8 else 2}")
    as_unsigned = (pixels.astype(np.int64) & (2**bits - 1)).astype(f"u{pixels.dtype.itemsize}")
    frame = imagecodecs.jpeg8_encode(as_unsigned, lossless=True, predictor=predictor, bitspersample=bits)
    syntax = JPEGLosslessSV1 if predictor == 1 else JPEGLossless
    data = file_of(frame, pixels, syntax, bits)
    np.testing.assert_array_equal(decoded(data)[0], pixels)
    (tmp_path / "a.dcm").write_bytes(data)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.dcm")))
    np.testing.assert_array_equal(expected.squeeze(), pixels)


def test_lossy_jpeg_of_8_and_12_bits():
    smooth = np.add.outer(np.arange(32), np.arange(40)) * 50
    frame = imagecodecs.jpeg8_encode(smooth.astype(np.uint16), level=100, bitspersample=12)
    x = decoded(file_of(frame, smooth.astype(np.uint16), JPEGExtended12Bit, 12))[0]
    assert np.abs(x - smooth).max() <= 4
    colours = np.stack([smooth // 16, 200 - smooth // 32, np.full(smooth.shape, 90)], -1).astype(np.uint8)
    frame = imagecodecs.jpeg8_encode(colours, level=100, colorspace="RGB", outcolorspace="RGB")
    x = decoded(file_of(frame, colours, JPEGBaseline8Bit, 8))[0]
    assert np.abs(x.astype(int) - colours).max() <= 2


def test_frame_larger_than_its_header_is_refused():
    """Before memory is taken: 65,500 x 65,500 pixels would be 4 GB."""
    pixels = np.zeros((16, 16), np.uint8)
    for frame, syntax in (
        (imagecodecs.jpeg8_encode(pixels), JPEGBaseline8Bit),
        (imagecodecs.jpegls_encode(pixels), pydicom.uid.JPEGLSLossless),
        (imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"), pydicom.uid.JPEG2000Lossless),
    ):
        assert decoded(file_of(frame, pixels, syntax, 8)).shape == (1, 16, 16)
        large = bytearray(frame)
        if syntax == pydicom.uid.JPEG2000Lossless:
            large[8:16] = bytes.fromhex("0000ffdc0000ffdc")
        else:
            marker = b"\xff\xf7" if syntax == pydicom.uid.JPEGLSLossless else b"\xff\xc0"
            start = frame.index(marker) + 5
            large[start : start + 4] = bytes.fromhex("ffdcffdc")
        with pytest.raises(DataError, match="cannot be decoded: damaged"):
            decoded(file_of(bytes(large), pixels, syntax, 8))


def test_our_decoder_is_taken_whatever_else_is_installed():
    require_pydicom()
    for syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1):
        assert "imagecodecs" in pydicom.pixels.get_decoder(syntax).available_plugins
