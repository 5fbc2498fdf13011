"""Names of files in a results folder: the path where that is a good name, else one that is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from normalcy.results.names import LONGEST, NIFTI, SUFFIXES, file_names, named, readable


def files(name: str) -> set[str]:
    return {named(name, suffix).casefold() for suffix in SUFFIXES}


def assert_good(names: list[str]) -> None:
    """Relative, inside, short, UTF-8, and no two share a file or need a file to be a folder."""
    for name in names:
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts), name
        assert max(len(part.encode("utf-8")) for part in parts) <= LONGEST
        assert "\\" not in name
        assert name.isprintable()
    for one, other in itertools.combinations(names, 2):
        assert not files(one) & files(other), (one, other)
        for above, below in ((one, other), (other, one)):
            assert not any(
                f"{file}/" in f"{target}/" and target.startswith(f"{file}/")
                for file in files(above)
                for target in files(below)
            )


def test_ordinary_paths_stay():
    paths = ["a/1.png", "a/2.png", "scan.nii.gz", "scan.nii.gz[z=3]", "é ü.png", "mnist/test/00012", ".x", "a:b.png"]
    assert file_names(paths) == paths


@pytest.mark.parametrize(
    "path",
    ["/data/scan20.nii.gz", "../img/a.png", "a/../../b.png", "./a.png", "a//b.png", "C:\\x\\a.png", "C:/a.png", "..\\a.png",
     "caf\udce9.png", "x" * 244 + ".png", "/".join(["d" * 150] * 20), "a\nb.png", "tab\t.png", "nul\0.png", "/", "..", ""],
)  # fmt: skip
def test_paths_that_are_no_names_become_short_ones(path: str):
    [name] = file_names([path])
    assert name != path
    assert "/" not in name
    assert_good([name])
    assert file_names([path]) == [name], "the same each time"


def test_the_suffix_of_a_volume_stays():
    [name] = file_names(["/data/scan20.nii.gz"])
    assert named(name, NIFTI) == name
    assert named(name, ".npy") == f"{name}.npy"


@pytest.mark.parametrize(
    "paths",
    [
        ["T1", "T1.nii.gz"],  # a DICOM folder and a file
        ["T1.nii.gz", "T1"],
        ["T1.nii.gz/1.png", "T1.nii.gz"],  # a folder of that name and a file
        ["a.jpg", "a.jpg.png", "a.jpg.png.png"],
        ["A.png", "a.png", "a.PNG"],
        ["é.png", "e\u0301.png"],  # one letter, composed and not
        ["/x/a.png", "/y/a.png", "a.png", "../a.png"],
        ["/x/" + "y" * 250 + ".png", "/z/" + "y" * 250 + ".png"],
    ],
    ids=str,
)
def test_no_two_images_share_a_file(paths: list[str]):
    names = file_names(paths)
    assert_good(names)
    assert len(set(names)) == len(paths)


def test_any_paths_at_all():
    rng = np.random.default_rng(0)
    alphabet = [
        "a",
        "B",
        "b",
        "/",
        "..",
        ".",
        "é",
        "\udce9",
        ".png",
        ".nii.gz",
        ".npy",
        "x" * 120,
        " ",
        "\\",
        ":",
        "\n",
    ]
    paths = {"".join(rng.choice(alphabet, rng.integers(1, 7))) for _ in range(300)}
    assert_good(file_names(sorted(paths)))


def test_a_path_is_readable_as_utf_8():
    assert readable("a/é.png") == "a/é.png"
    assert readable("caf\udce9.png").encode("utf-8") == b"caf\\udce9.png"
