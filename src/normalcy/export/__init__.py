"""Models for deployment: a fitted method as a graph (ONNX or OpenVINO) that runs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normalcy.export.write import export as export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    """Imported when first used: what reads and runs graphs needs no torch."""
    if name != "export":
        raise AttributeError(f"module 'normalcy.export' has no attribute {name!r}")
    from normalcy.export.write import export

    return export
