"""Commands about a results folder: evaluate, report, dicom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from normalcy.cli import options as o
from normalcy.cli.printing import complain, interval, progress, show


def evaluate(results: o.Results, limit: o.Limit = 0.3, patch: o.Patch = None, patch_share: o.PatchShare = 0.05) -> None:
    """Compute metrics with 95 % intervals, write metrics.json.

    Metrics of images, cases, patches, regions and pixels.
    """
    from normalcy.results.evaluate import evaluate as evaluate_results

    for line in _metrics(evaluate_results(results, limit=limit, patch=patch, patch_share=patch_share)):
        show(line)


def report(results: o.AnyResults) -> None:
    """Write a self-contained HTML report."""
    from normalcy.report import write_comparison, write_report

    page = write_comparison(results) if (results / "compare.json").exists() else write_report(results)
    show(str(page))


def dicom(results: o.Results, out: o.DicomOut, data: o.SourceImages = None) -> None:
    """Write maps as DICOM objects that refer to their source images.

    A parametric map, a segmentation and overlays for each image; they name its patient.
    """
    from normalcy.results.dicom import write_dicom

    with progress("writing") as on_progress:
        count, failed = write_dicom(results, out, None if data is None else o.open_data(data, None), on_progress)
    for _, reason in failed:
        complain(f"Skipped {reason}")
    show(f"Wrote DICOM results of {count} images -> {out}")


# -- private ---------------------------------------------------------------------------------------------------------


def _metrics(found: dict[str, Any]) -> Iterator[str]:
    image, case, pixel = found["image"], found["case"], found["pixel"]
    yield f"{image['normal']} normal and {image['anomalous']} anomalous images"
    if case is not None:
        yield f"of {case['normal']} normal and {case['anomalous']} anomalous cases"
        if case["auroc"] is not None:
            yield f"case AUROC               {interval(case['auroc'])}"
    yield f"image AUROC              {interval(image['auroc'])}"
    yield f"image average precision  {interval(image['average_precision'])}"
    yield f"FPR at 95 % TPR          {interval(image['fpr_at_95_tpr'])}"
    decided = image["at_threshold"]
    if decided is not None:
        yield f"false alarms             {decided['false_alarms']} of {image['normal']}"
        yield f"anomalies detected       {decided['found']} of {image['anomalous']}"
    if pixel is not None:
        yield f"pixel AUROC              {interval(pixel['auroc'])}"
        yield f"AUPRO ({pixel['aupro']['limit']:g})              {interval(pixel['aupro'])}"
        if pixel["regions"]:
            yield f"regions detected         {pixel['regions']['hit']} of {pixel['regions']['total']}"
    if (patch := found["patch"]) is not None:
        yield f"patch AUROC (side {patch['size']})    {interval(patch['auroc'])}"
    if (region := found["region"]) is not None:
        yield f"mean region sensitivity  {interval(region['mean_sensitivity'])} (1/8 to 8 false regions per image)"
