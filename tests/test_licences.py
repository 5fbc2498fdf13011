"""Everything that normalcy asks to be installed may be used in an Apache-2.0 product."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def declared() -> list[str]:
    """Names of the packages in the dependencies and in every extra."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in requirements}
    return sorted(names - {project["name"]})


def licences(name: str) -> str:
    """All that a package says of its licence: the SPDX expression, the classifiers, the free text."""
    found = metadata(name)
    classifiers = [one for one in found.get_all("Classifier") or [] if one.startswith("License ::")]
    return " | ".join([found["License-Expression"] or "", *classifiers, (found["License"] or "")[:300]])


def is_gpl(text: str) -> bool:
    """Whether a licence is of the GPL family; the LGPL, which lets a library be imported, does not count."""
    rest = re.sub(r"LGPL|GNU (Lesser|Library) General Public", "", text, flags=re.IGNORECASE)
    return bool(re.search(r"GPL|General Public", rest, flags=re.IGNORECASE))


@pytest.mark.parametrize("name", declared())
def test_no_requirement_is_under_the_gpl(name: str):
    said = licences(name)
    assert re.search(r"\w", said), f"{name} does not say its licence; look it up"
    assert not is_gpl(said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0-or-later", True),
        ("GPL V3.0", True),
        ("License :: OSI Approved :: GNU Lesser General Public License v2 (LGPLv2)", False),
        ("BSD-3-Clause", False),
    ],
)
def test_gpl_is_recognised(text: str, expected: bool):
    assert is_gpl(text) == expected
