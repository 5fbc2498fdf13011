"""Model folders of other hands: bounded memory, one error message, nothing private, permissions by the umask."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import normalcy
from normalcy import Detector, ModelFileError
from normalcy.errors import DataError
from normalcy.methods import METHODS, get
from normalcy.model_folder import _compare

rng = np.random.default_rng(0)
IMAGES = (100 + 20 * rng.random((60, 16, 16))).astype(np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = Detector("autoencoder", latent=4, steps=2, size=16).fit(IMAGES)
    return detector.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(folder: Path, *keys: str, value: Any, text: str | None = None) -> None:
    """Set ``detector.json``'s value under these keys; ``text`` is written as it stands."""
    words = json.loads((folder / "detector.json").read_text())
    at = words
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = "PLACE" if text is not None else value
    out = json.dumps(words)
    (folder / "detector.json").write_text(out if text is None else out.replace('"PLACE"', text))


def weigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors, with a checksum that fits."""
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    edit(folder, "weights_sha256", value=hashlib.sha256(path.read_bytes()).hexdigest())


def retype(kind: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name, one in tensors.items() if one.ndim == 4)
        tensors[name] = tensors[name].to(kind)

    return change


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "latent": (lambda f: edit(f, "settings", "latent", value=3_000_000), "larger network|expected"),
    "endless shape": (lambda f: edit(f, "shape", value=0, text="[1, 1e999, 16]"), "not finite"),
    "long number": (lambda f: edit(f, "settings", "latent", value=0, text="1" + "0" * 400), "too large"),
    "large number": (lambda f: edit(f, "settings", "latent", value=2**62), "damaged or does not fit"),
    "shape of floats": (lambda f: edit(f, "shape", value=[1.5, 16, 16]), "shape .* is impossible"),
    "shape of texts": (lambda f: edit(f, "shape", value=["1", "16", "16"]), "shape .* is impossible"),
    "no data": (lambda f: edit(f, "data", value=None), "data should be an object"),
    "data as text": (lambda f: edit(f, "data", value="x"), "data should be an object"),
    "seconds as text": (lambda f: edit(f, "fit", "seconds", value="x"), r"fit\.seconds should be a number"),
    "name as list": (lambda f: edit(f, "data", "name", value=[]), r"data\.name should be text"),
    "scheme as list": (lambda f: edit(f, "data", "scheme", value=[1]), r"data\.scheme should be an object"),
    "method as number": (lambda f: edit(f, "method", value=3), "method should be text"),
    "doubles": (lambda f: weigh(f, retype(torch.float64)), "float64"),
    "bytes": (lambda f: weigh(f, retype(torch.int8)), "int8"),
    "a tensor less": (lambda f: weigh(f, lambda tensors: tensors.pop("_fitted")), "_fitted: expected .* got none"),
    "weights are a pipe": (lambda f: pipe(f / "weights.safetensors"), "is not a regular file"),
    "description is a pipe": (lambda f: pipe(f / "detector.json"), "is not a regular file"),
    "log is a pipe": (lambda f: pipe(f / "train.jsonl"), "is not a regular file"),
    "calibration is a device": (lambda f: device(f / "calibration.json"), "is not a regular file"),
    "long numbers in calibration": (
        lambda f: (f / "calibration.json").write_text('{"": {"scores": [1' + "0" * 400 + "]}}"),
        "too large",
    ),
    "nested calibration": (
        lambda f: (f / "calibration.json").write_text(
            '{"": {"scores": [1.0], "levels": [[1.0]], "rates": [[1.0]], "map_range": null}}'
        ),
        "calibration",
    ),
}


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_one_error_message(model: Path, name: str) -> None:
    change, says = HOSTILE[name]
    change(model)
    with pytest.raises(ModelFileError, match=says) as caught:
        normalcy.load(model)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def test_a_nested_log_is_passed_over(model: Path) -> None:
    (model / "train.jsonl").write_text('{"step": 1}\n{"loss": ' + "[" * 50_000 + "\n")
    assert normalcy.load(model).records == [{"step": 1}]


@pytest.mark.parametrize(
    "changes",
    [{"latent": 3_000_000}, {"width": 30_000}],
    ids=["a wide code", "wide layers"],
)
def test_memory_is_bounded_by_the_weights_file(model: Path, changes: dict[str, int]) -> None:
    """Refused in a process that may take 1 GiB beyond what it starts with; the network would need more."""
    for word, value in changes.items():
        edit(model, "settings", word, value=value)
    code = f"""
import resource, normalcy, normalcy.detector, normalcy.methods.autoencoder
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
try:
    normalcy.load({str(model)!r})
except normalcy.ModelFileError as error:
    print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "does not fit" in done.stdout, done.stderr


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_built_without_memory(name: str) -> None:
    """Its tensors are then those of the method built as usual, so loading can compare first."""
    cls = get(name)
    for shape in ((1, 64, 64), (3, 64, 64), (1, 32, 32, 32)):
        if len(shape) - 1 not in cls.spatial_dims:
            continue
        try:
            method = cls(cls.Settings(), shape)
        except DataError:  # methods for one number of channels
            continue
        stored = {name: (tuple(one.shape), one.dtype) for name, one in method.state_dict().items()}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _compare(Path("model"), stored, lambda cls=cls, shape=shape: cls(cls.Settings(), shape))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    detector = Detector("zscore").fit(IMAGES)
    for mask, wanted in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            folder = detector.save(tmp_path / oct(mask))
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert set(modes) >= {"weights.safetensors", "detector.json", "CARD.md", "train.jsonl", "calibration.json"}
        assert set(modes.values()) == {wanted}, modes


def test_a_full_disk_is_one_message(saved: Path, tmp_path: Path) -> None:
    """safetensors tells it in words of its own."""
    code = """
        import resource, sys
        from normalcy import Detector
        from normalcy.errors import WriteError
        detector = Detector.load(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            detector.save(sys.argv[2])
        except WriteError as error:
            print(error)
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(saved), str(tmp_path / "new" / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "out: cannot be written (File too large); free some space" in done.stdout, done.stderr
    assert not (tmp_path / "new").exists()


def test_model_folders_keep_no_paths_of_the_user(tmp_path: Path) -> None:
    root = tmp_path / "DOE^JANE"
    (root / "a").mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(root / "a" / f"{i:02d}.png")
    (root / "a" / "00.png").write_bytes(b"")
    outside = tmp_path / "ROE^JOHN"
    outside.mkdir()
    (outside / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = [f"a/{i:02d}.png" for i in range(60)] + [str(outside / "cut.png")]
    (root / "t.csv").write_text("path\n" + "\n".join(names))
    folder = Detector("zscore", calibration=0).fit(normalcy.open_data(root / "t.csv")).save(tmp_path / "model")
    text = "".join((folder / name).read_text() for name in ("detector.json", "CARD.md", "train.jsonl"))
    assert "JANE" not in text
    assert "JOHN" not in text
    assert str(tmp_path) not in text
    failed = json.loads((folder / "detector.json").read_text())["data"]["failed"]
    assert sorted(path for path, _ in failed) == ["a/00.png", "cut.png"]
    assert all(reason.startswith(f"{Path(path).name}: cannot be read") for path, reason in failed)


def test_what_would_be_uploaded_is_listed(saved: Path) -> None:
    files = normalcy.load(saved).hub_files()
    assert set(files) == {"CARD.md", "calibration.json", "detector.json", "train.jsonl", "weights.safetensors"}
    assert files["weights.safetensors"] == (saved / "weights.safetensors").stat().st_size


def test_names_of_patients_are_hashed(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    root = tmp_path / "study"
    for i in range(44):
        (root / f"DOE^JANE{i}").mkdir(parents=True)
        values = rng.integers(0, 99, (8, 8, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / f"DOE^JANE{i}" / "t1.nii")
    (root / "DOE^JANE7" / "t1.nii").write_bytes(b"x")
    folder = Detector("zscore", calibration=0).fit(normalcy.open_data(root)).save(tmp_path / "model")
    text = (folder / "detector.json").read_text() + (folder / "CARD.md").read_text()
    assert "JANE" not in text
    assert json.loads((folder / "detector.json").read_text())["data"]["failed"][0][0].startswith("image ")


def test_text_of_a_card_is_never_markup(model: Path) -> None:
    """Names from data and from a foreign description, which a card repeats."""
    evil = "x`](http://a)\n# Heading <img src=x onerror=y> [b](javascript:c) \u202e\x1b[31m"
    for keys in (
        ("data", "name"),
        ("data", "fingerprint"),
        ("fit", "device"),
        ("fit", "precision"),
        ("settings", "reduce"),
    ):
        with contextlib.suppress(KeyError):
            edit(model, *keys, value=evil)
    words = json.loads((model / "detector.json").read_text())
    words["settings"].pop("reduce", None)
    (model / "detector.json").write_text(json.dumps(words))
    card = normalcy.load(model).card()
    spans = re.sub(r"`[^`\n]*`", "", card.replace("```", ""))
    assert all(mark not in spans for mark in ("](", "<img", "# Heading", "\u202e", "\x1b"))
    assert "\u202e" not in card
    assert "\x1b" not in card


def test_a_sparse_weights_file_is_refused_at_once(model: Path) -> None:
    """Its checksum would take hours."""
    with open(model / "weights.safetensors", "r+b") as file:
        file.truncate(2**40)
    started = time.process_time()
    with pytest.raises(ModelFileError, match="damaged or was exchanged"):
        normalcy.load(model)
    assert time.process_time() - started < 2
