"""Files beside images that are none that can be read: what each is, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from os.path import splitext

from normalcy.data.formats import stem

_DETACHED = {".mhd": ("MetaImage", ".mha"), ".nhdr": ("NRRD", ".nrrd"), ".hdr": ("Analyze or NIfTI", ".nii")}
"""Suffix of a header without values -> its format, and the suffix of one that holds both."""
_VALUES = (".raw", ".zraw", ".img", ".img.gz", ".raw.gz")
_OTHER = {
    (".mnc", ".mnc.gz"): "a MINC volume; convert it to NIfTI, for example with mnc2nii",
    (
        ".par",
        ".rec",
    ): "a volume of Philips as PAR/REC; convert it to NIfTI, for example with dcm2niix or nibabel's parrec2nii",
    (".head", ".brik", ".brik.gz"): "a volume of AFNI; convert it to NIfTI, for example with 3dAFNItoNIFTI",
    (".v", ".ecat"): "a volume of ECAT; convert it to NIfTI",
    (".gii", ".gii.gz"): "a surface (GIFTI), which is no image",
    (".trk", ".tck"): "streamlines, which are no image",
    (".dcm.gz", ".ima.gz"): "a compressed DICOM file; decompress it",
    (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"): "an archive; unpack it, and name the folder",
    ("dicomdir",): "an index of DICOM files, which are read without it; name their folder",
}
_BESIDE = (".bval", ".bvec", ".json")
"""What stands beside a volume of the same name: diffusion weighting and description (BIDS)."""
_LARGEST = 2**16
NO_IMAGE = "not an image that can be read"


def reason(name: str, head: Callable[[str, int], bytes], is_there: Callable[[str], bool]) -> str:
    """Why the file ``name`` is no image that can be read; ``head`` gives the first bytes of a file."""
    lower = name.lower()
    for suffixes, what in _OTHER.items():
        if lower.endswith(suffixes):
            return what
    suffix = splitext(lower)[1]
    if suffix in _DETACHED:
        kind, whole = _DETACHED[suffix]
        companions = _companions(name, head)
        if not companions:
            return f"a header of {kind} that names no file of values; save the volume as one {whole} file"
        if not any(map(is_there, companions)):
            shown = companions[0].rpartition("/")[2]
            return f"a detached header of {kind} whose data file {shown} is missing; add it and save both as one {whole} file"
        return f"a detached header of {kind}, its values are in another file; save both as one {whole} file"
    if lower.endswith(_VALUES):
        return (
            "values without a header (.mhd, .nhdr or .hdr) beside them; save the volume as one .nii, .nrrd or .mha file"
        )
    return NO_IMAGE


def reasons(
    names: Iterable[str], images: Collection[str], head: Callable[[str, int], bytes], is_there: Callable[[str], bool]
) -> dict[str, str]:
    """Of each of these files its :func:`reason`. What belongs to one of them, or to one of ``images``, is not listed."""
    found = {name: reason(name, head, is_there) for name in names}
    stems = {stem(image) for image in images}
    covered = {other for name in found if splitext(name)[1].lower() in _DETACHED for other in _companions(name, head)}
    beside = {name for name in found if name.lower().endswith(_BESIDE) and splitext(name)[0] in stems}
    return {name: why for name, why in found.items() if name not in covered | beside}


def _companions(name: str, head: Callable[[str, int], bytes]) -> list[str]:
    """Files in which the values of a detached header may be, by their paths as ``name`` is given."""
    base, suffix = splitext(name)
    if suffix.lower() == ".hdr":
        return [base + other for other in (".img", ".img.gz", ".IMG")]
    field = rb"ElementDataFile\s*=" if suffix.lower() == ".mhd" else rb"(?i:data ?file)\s*:"
    named = re.search(rb"^" + field + rb"[ \t]*([^\r\n]+)", head(name, _LARGEST), re.MULTILINE)
    if named is None:
        return []
    file = named[1].decode("utf-8", "replace").strip().split("%")[0]
    # only names of files beside the header are looked for, and told: anything may stand there
    return [f"{name.rpartition('/')[0]}/{file}".lstrip("/")] if re.fullmatch(r"[\w. ()+-]{1,200}", file) else []
