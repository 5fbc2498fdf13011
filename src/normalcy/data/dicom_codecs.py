"""JPEG, JPEG-LS and JPEG 2000 in DICOM, decoded by imagecodecs (libjpeg-turbo, CharLS, OpenJPEG): a plug-in of pydicom.

imagecodecs reads compressed TIFF already, so DICOM needs no codec packages of its own; pydicom itself decodes run lengths.
Baseline, extended (8 and 12 bits) and lossless JPEG (2 to 16 bits) are all libjpeg-turbo's. pydicom's interface:
https://pydicom.github.io/pydicom/stable/guides/decoding/decoder_plugins.html
"""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np

NAME = "imagecodecs"
_JPEG = (
    "1.2.840.10008.1.2.4.50",  # baseline
    "1.2.840.10008.1.2.4.51",  # extended
    "1.2.840.10008.1.2.4.57",  # lossless
    "1.2.840.10008.1.2.4.70",  # lossless, first-order prediction
)
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",  # high-throughput
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
)
DECODER_DEPENDENCIES = dict.fromkeys((*_JPEG, *_JPEG_LS, *_JPEG_2000), (NAME,))
_REGISTERING = threading.Lock()  # add_plugin is not thread-safe


def is_available(syntax: str) -> bool:
    """Asked by pydicom of a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def register(pydicom: Any) -> None:
    """Offers the plug-in to pydicom's decoders, once."""
    with _REGISTERING:
        for syntax in DECODER_DEPENDENCIES:
            decoder = pydicom.pixels.get_decoder(syntax)
            if NAME not in decoder.available_plugins:
                decoder.add_plugin(NAME, (__name__, "decode_frame"))


def decode_frame(frame: bytes, runner: Any) -> bytes:
    """The samples of an encoded frame, colours side by side, in the colour space of the file."""
    import imagecodecs

    syntax = str(runner.transfer_syntax)
    claimed = _size(frame)
    if claimed != (runner.rows, runner.columns):  # before any memory is taken for it
        raise ValueError(f"a frame of {claimed} rows and columns, expected {(runner.rows, runner.columns)}")
    if syntax in _JPEG_LS:
        pixels = imagecodecs.jpegls_decode(frame)
    elif syntax in _JPEG_2000:
        pixels = imagecodecs.jpeg2k_decode(frame)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # undone by the codec
            runner.set_option("photometric_interpretation", "RGB")
    else:  # pydicom converts colours, by the header and the markers of the frame: the codec must not
        space = "YCBCR" if runner.samples_per_pixel == 3 else None
        pixels = imagecodecs.jpeg8_decode(frame, colorspace=space, outcolorspace=space)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return np.ascontiguousarray(pixels).tobytes()


def _size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a codestream says; None where it does not.

    >>> _size(bytes.fromhex("ffd8 ffc0 000b 08 0040 0030 01 01 11 00"))
    (64, 48)
    """
    start = frame.find(b"\xff\x4f\xff\x51")  # JPEG 2000, perhaps in a JP2 file
    if start >= 0 and not frame.startswith(b"\xff\xd8"):
        right, lower, left, upper = struct.unpack_from(">4I", frame, start + 8)
        return lower - upper, right - left
    place = 2
    while frame[place : place + 1] == b"\xff" and place + 9 <= len(frame):
        marker = frame[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # start of frame
            rows, columns = struct.unpack_from(">2H", frame, place + 5)
            return rows, columns
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None
