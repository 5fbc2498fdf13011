"""Model folders: ``detector.json``, ``weights.safetensors``, ``calibration.json``, ``CARD.md`` and ``train.jsonl``.

Written whole or not at all. Reading runs no code from the files: JSON, and tensors that must match, by name, shape and
type, what the method builds from its settings. That is compared before memory is taken, so that a few bytes of JSON
cannot ask for more than the weights file holds.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normalcy.errors import ModelFileError
from normalcy.files import mode_by_umask, open_regular, read_json, write_bytes, write_folder, write_json
from normalcy.provenance import NOTICE

M = TypeVar("M", bound=nn.Module)

FORMAT = 1
DESCRIPTION, WEIGHTS, CALIBRATION = "detector.json", "weights.safetensors", "calibration.json"
OLD_NAMES = {"input": {"piece_score": "view_score"}, "data": {"made": "scheme"}}
"""Part of ``detector.json`` -> names in folders of earlier versions -> names today."""
MAX_VALUES = 2**31
"""Largest number of values in an image that a method may see."""
SPARE = 2**28
"""Values (1 GiB of float32) that building a method may take for a while, beside four times those in its weights file: of
a large backbone only the first layers may be kept."""
_NUMBER = (int, float)
_PARTS: Mapping[str, Any] = {
    "method": str,
    "settings": dict,
    "input": dict,
    "train": dict,
    "decision": dict,
    "shape": list,
    "preprocess": dict,
    "data": {"name": str, "count": int, "held_out": int, "fingerprint": str, "medical": bool, "scheme": dict, "failed": list},
    "fit": {"seconds": _NUMBER, "steps": int, "precision": str, "device": str},
    "versions": {},
}  # fmt: skip
"""What ``detector.json`` must hold, and the types of what its parts may hold."""
_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_Plan = dict[str, tuple[tuple[int, ...], Any]]
"""Tensor -> shape, type."""

ADDED: Mapping[str, frozenset[str]] = {
    "lsr": frozenset({"local", "code_error", "spread", "chosen", "tried", "map_aurocs"}),
    "vq_restoration": frozenset({"deviation"}),
}
"""Method -> tensors that models of earlier versions lack; they keep the values of a new method."""
ALWAYS_MEAN = ("alocc", "dsebm", "ganomaly", "ocgan", "rda")
"""Methods whose models of earlier versions have no setting ``reduce`` and score by the mean of the map."""


def save(
    folder: Path,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    calibration: Mapping[str, Any] | None,
    texts: Mapping[str, str],
    overwrite: bool = False,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a model folder. ``description`` and ``calibration`` hold JSON values, ``texts`` and ``files`` further files by
    name."""

    def fill(partial: Path) -> None:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, partial / WEIGHTS)
        except SafetensorError as error:
            if (code := re.search(r"\(os error (\d+)\)", str(error))) is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        (partial / WEIGHTS).chmod(mode_by_umask(partial))  # safetensors makes it private
        write_json(
            partial / DESCRIPTION, {"format": FORMAT, **description, "weights_sha256": _digest(partial / WEIGHTS)}
        )
        if calibration is not None:
            write_json(partial / CALIBRATION, calibration)
        for name, text in texts.items():
            write_bytes(partial / name, text.encode("utf-8", "surrogateescape"))
        for name, content in files.items():
            write_bytes(partial / name, content)

    write_folder(folder, fill, overwrite)


def is_exported(folder: Path) -> bool:
    """Whether a model folder holds a graph in the place of weights. Raises ModelFileError as :func:`read_description` does."""
    return "graph" in read_description(folder)


def read_description(folder: Path) -> dict[str, Any]:
    """``detector.json``. Raises ModelFileError when it is missing, damaged or of another format version."""
    if not folder.is_dir():
        raise ModelFileError(f"There is no model folder {folder}: give the folder that fit wrote with --out.")
    description = read_json(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise ModelFileError(
            f"{folder} has format version {repr(description.get('format'))[:20]}, this normalcy reads {FORMAT}: "
            "use the version of normalcy that wrote it, or fit again."
        )
    for part, kind in _PARTS.items():
        _check(folder, part, description.get(part), kind)
    shape = description["shape"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
    if not 3 <= len(shape) <= 4 or not whole or math.prod(shape) > MAX_VALUES:
        raise ModelFileError(
            f"{folder} is damaged or does not fit this normalcy (the shape {str(shape)[:60]} is impossible)."
        )
    for part, names in OLD_NAMES.items():
        description[part] = {names.get(name, name): value for name, value in description[part].items()}
    settings = description["settings"]
    if description["method"] == "pca" and "quantile" in settings:
        quantile = settings.pop("quantile")  # none was the mean
        settings["reduce"] = "mean" if quantile is None else quantile
    if description["method"] == "vq_restoration" and isinstance(settings.get("filter"), bool):
        settings["filter"] = "paper" if settings["filter"] else "none"
    if description["method"] == "lsr":
        settings.setdefault("prior", "causal")
    if description["method"] in ALWAYS_MEAN:
        settings.setdefault("reduce", "mean")
    return description


def read_weights(folder: Path, description: Mapping[str, Any], build: Callable[[], M]) -> M:
    """The method that ``build`` makes, with the weights of the folder.

    It is built without memory first, and its tensors compared with those in the file. Raises ModelFileError when the
    file is missing, not the one that was saved, or of another method.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ModelFileError(f"Cannot read {path}: there is no such file; copy the model again.")
    try:
        open_regular(path, ModelFileError).close()
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            stored = {name: (tuple(part.get_shape()), _TYPES.get(part.get_dtype())) for name, part in parts.items()}
            added = ADDED.get(description["method"], frozenset())
            _compare(folder, stored, build, added)  # first: the checksum of a file that claims much takes long
            if _digest(path) != description.get("weights_sha256"):
                raise ModelFileError(
                    f"{path} is damaged or was exchanged (its checksum is another): copy the model again."
                )
            method = build()
            weights = {name: file.get_tensor(name) for name in stored}
            method.load_state_dict({**{name: method.state_dict()[name] for name in added}, **weights})
        return method
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise ModelFileError(
            f"{path} is damaged or was exchanged (no safetensors file: {error}): copy the model again."
        ) from error


def read_calibrations(folder: Path) -> dict[str, Any]:
    """``calibration.json``: score -> what :class:`~normalcy.calibrate.Calibration` reads; empty where there is none."""
    path = folder / CALIBRATION
    return read_json(path) if path.exists() else {}


def card(
    name: str,
    shape: Sequence[int],
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    threshold: float | None,
    held_out: int,
    false_alarms: float,
    no_flags: str | None = None,
    roi: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """``CARD.md``. ``facts`` as in ``detector.json``; ``threshold`` from ``held_out`` normal images, None without them;
    ``no_flags``: why it flags nothing; ``roi``: which part of an image counts, None for all of it; ``notes``: of the method."""
    data, fit = facts.get("data", {}), facts.get("fit", {})
    lines = [
        f"# {name} detector",
        "",
        f"Trained on {data.get('count')} normal images of {literal(data.get('name'))} (fingerprint "
        f"{literal(data.get('fingerprint'))}), in {fit.get('seconds', 0):.0f} s on {literal(fit.get('device'))} in "
        f"{literal(fit.get('precision'))}.",
        "",
        f"Input: images of shape {tuple(shape)} (channels, then space). Higher scores are more anomalous.",
    ]
    if roi is not None:
        lines += [
            "",
            f"Region of interest: {roi}. Outside of it maps are zero, and nothing has an influence on the score.",
        ]
    if no_flags is not None:
        lines += ["", f"Calibrated on {held_out} held-out normal images: {no_flags}"]
    elif threshold is not None:
        lines += [
            "",
            f"Calibrated on {held_out} held-out normal images: a score above {threshold:.6g} flags an image, with a "
            f"guaranteed false-positive rate of at most {false_alarms:g} for images like these.",
        ]
    if data.get("medical"):
        lines += ["", NOTICE]
    if notes:
        lines += ["", "## Chosen in the fit", "", *(f"- {note}" for note in notes)]
    lines += ["", "## Use", "", "```", "normalcy score MODEL IMAGES --out RESULTS", "```", "", "## Settings", ""]
    lines += [f"- {setting}: {literal(value)}" for setting, value in settings.items()]
    return "\n".join(lines) + "\n"


def literal(value: Any) -> str:
    """Text from elsewhere in a Markdown file, where it can be nothing but text.

    >>> literal("mnist:3"), literal(0.5), literal("[a](http://b)")
    ('mnist:3', '0.5', '`[a](http://b)`')
    """
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9]?[\w:-]*|-?[0-9.e+-]+", text, re.ASCII):
        return text
    shown = "".join(c if c.isprintable() and c != "`" else ascii(c)[1:-1] if c != "`" else "'" for c in text)
    return f"`{shown[:500]}`"


def without_folders(value: Any) -> Any:
    """JSON values with every absolute path in a text cut down to its last part: folders name people and patients.

    >>> without_folders({"backbone": "resnet18:/home/jane/w.pth", "size": 64})
    {'backbone': 'resnet18:w.pth', 'size': 64}
    """
    if isinstance(value, dict):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(one) for one in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def private(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a model folder keeps of the training data: no folder of the user, and of a patient's image a hash of its path.

    >>> private({"medical": True, "failed": [["DOE^JANE/t1.nii", "/data/DOE^JANE/t1.nii: is cut off"]]})["failed"]
    [['image adcd2aad', 'image adcd2aad: is cut off']]
    >>> private({"medical": False, "failed": [["a/b.png", "/home/jane/a/b.png: is cut off"]]})["failed"]
    [['a/b.png', 'b.png: is cut off']]
    """
    failed = []
    for path, reason in data.get("failed", ()):
        name = without_folders(path)
        if data.get("medical"):  # a reason starts with the file or folder
            name = f"image {hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
            reason = f"{name}: {reason.partition(': ')[2] or reason}".replace(path, name)
        failed.append([name, without_folders(reason)])
    return {**without_folders(dict(data)), "failed": failed}


# -- private ---------------------------------------------------------------------------------------------------------

_FOLDERS = re.compile(r"(?:(?<![\w.~/\\])|(?<=[:=,]))(?:~|[A-Za-z]:)?[/\\](?:[^/\\\n\"']+[/\\])*(?=[^/\\\s\"'])")
"""From the root to the last separator of an absolute path; the text before it must not be a part of a relative one."""


def _check(folder: Path, name: str, value: Any, kind: Any) -> None:
    parts = kind if isinstance(kind, Mapping) else {}
    kind = dict if isinstance(kind, Mapping) else kind
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {str: "text", dict: "an object", list: "a list", bool: "true or false"}.get(kind, "a number")
        raise ModelFileError(f"{folder} is damaged or does not fit this normalcy ({name} should be {words}).")
    for word, one in parts.items():
        if value.get(word) is not None:
            _check(folder, f"{name}.{word}", value[word], one)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path, ModelFileError) as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


class _Bounded(TorchFunctionMode):
    """Counts the values of new tensors, and stops the one who asks for too many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left, self.calls = most, 10**6

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" and "tensor" in (kwargs or {}):
            made = kwargs["tensor"]  # without values; to draw them would import torch's compiler, which takes seconds
        else:
            made = func(*args, **(kwargs or {}))
        self.calls -= 1
        if isinstance(made, Tensor) and not any(_same_memory(made, one) for one in (*args, *(kwargs or {}).values())):
            self.left -= made.numel()
        if self.left < 0 or self.calls < 0:
            raise ModelFileError("its settings ask for a larger network than its weights file holds")
        return made


def _same_memory(made: Tensor, one: Any) -> bool:
    """Whether a tensor is another one, or a view of it."""
    return isinstance(one, Tensor) and made.untyped_storage()._cdata == one.untyped_storage()._cdata


def _compare(folder: Path, stored: _Plan, build: Callable[[], nn.Module], added: Collection[str] = ()) -> None:
    """Tensors that ``build`` makes against the stored ones, of which those ``added`` since may be absent, on the device that has
    no memory."""
    most = 4 * sum(math.prod(shape) for shape, _ in stored.values()) + SPARE
    try:
        with torch.device("meta"), _Bounded(most):
            tensors = build().state_dict()
    except ModelFileError as error:
        raise ModelFileError(f"{folder} is damaged or does not fit this normalcy ({error}).") from None
    for name in sorted(set(tensors) | set(stored)):
        wanted = (tuple(tensors[name].shape), tensors[name].dtype) if name in tensors else None
        got = stored.get(name)
        open_ = wanted is not None and got is not None and wanted[0] == (0,) and wanted[1] == got[1]
        if (
            wanted != got and not open_ and not (got is None and name in added)
        ):  # open: learned buffers, whose shape is known only after training
            raise ModelFileError(
                f"{folder} is damaged or does not fit this normalcy (the tensor {name[:80]}: expected {_said(wanted)}, "
                f"got {_said(got)})."
            )


def _said(one: tuple[tuple[int, ...], Any] | None) -> str:
    return "none" if one is None else f"{tuple(one[0])} {str(one[1]).removeprefix('torch.')}"
