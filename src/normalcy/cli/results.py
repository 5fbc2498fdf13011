"""Commands about a results folder: evaluate, report, dicom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from normalcy.cli import options as o
from normalcy.cli.printing import complain, progress, show, show_classes

if TYPE_CHECKING:
    from normalcy.results.metrics import Metrics


def evaluate(
    results: o.Results,
    labels: o.Labels = None,
    limit: o.Limit = 0.3,
    patch: o.Patch = None,
    patch_share: o.PatchShare = 0.05,
) -> None:
    """Compute metrics with 95 % intervals, write metrics.json.

    Metrics of images, cases, patches, regions and pixels.
    """
    from normalcy.results.evaluate import evaluate as evaluate_results

    found = evaluate_results(results, limit=limit, patch=patch, patch_fraction=patch_share, labels=labels)
    for line in _metrics(found):
        show(line)
    show_classes({"": found})
    for note in found.notes[1:]:
        complain(f"Note: {note}")


def report(
    results: o.AnyResults,
    data: o.SourceImages = None,
    data_root: o.DataRoot = None,
    neurological: o.Neurological = False,
) -> None:
    """Write a self-contained HTML report.

    Shows the input images if they are found and have not changed, or are given with --data.
    """
    from normalcy.report import write_comparison, write_report

    if (results / "compare.json").exists():
        page = write_comparison(results)
    else:
        page = write_report(
            results, None if data is None else o.open_data(data, data_root, as_normal=True), not neurological
        )
    show(str(page))


def dicom(results: o.Results, out: o.DicomOut, data: o.SourceImages = None, overwrite: o.Overwrite = False) -> None:
    """Write maps as DICOM objects that refer to their source images.

    A parametric map, a segmentation and overlays for each image; they name its patient.
    """
    from normalcy.results.dicom import write_dicom

    with progress("writing") as on_progress:
        source = None if data is None else o.open_data(data, None, as_normal=True)
        count, failed = write_dicom(results, out, source, overwrite=overwrite, on_progress=on_progress)
    for failure in failed:
        complain(f"Skipped {failure.reason}")
    show(f"Wrote DICOM results of {count} images -> {out}")


# -- private ---------------------------------------------------------------------------------------------------------


def _metrics(found: Metrics) -> Iterator[str]:
    from normalcy.report.text import with_interval

    image, case, pixel, patch, region = found.image, found.case, found.pixel, found.patch, found.region
    yield f"{image.normal} normal and {image.anomalous} anomalous images"
    if case is not None:
        yield f"of {case.normal} normal and {case.anomalous} anomalous cases"
        if case.auroc is not None:
            yield f"case AUROC               {with_interval(case.auroc)}"
    yield f"image AUROC              {with_interval(image.auroc)}"
    yield f"image average precision  {with_interval(image.average_precision)}"
    yield f"FPR at 95 % TPR          {with_interval(image.fpr_at_95_tpr)}"
    decided = image.at_threshold
    if decided is not None:
        yield f"false alarms             {decided.false_positives} of {image.normal}"
        yield f"anomalies detected       {decided.true_positives} of {image.anomalous}"
    if pixel is not None:
        yield f"pixel AUROC              {with_interval(pixel.auroc)}"
        yield f"AUPRO ({pixel.aupro.limit:g})              {with_interval(pixel.aupro)}"
        if pixel.regions is not None:
            yield f"regions detected         {pixel.regions.hit} of {pixel.regions.total}"
    if patch is not None:
        yield f"patch AUROC (side {patch.size})    {with_interval(patch.auroc)}"
    if region is not None:
        sensitivity = with_interval(region.mean_sensitivity)
        yield f"mean region sensitivity  {sensitivity} (1/8 to 8 false regions per image)"
    if found.drawn is not None:
        drawn = found.drawn
        yield f"of all images, estimated from {drawn.images} reviewed in the informative order:"
        yield f"precision                {with_interval(drawn.precision)}"
        yield f"recall                   {with_interval(drawn.recall)}"
        yield f"false-positive rate      {with_interval(drawn.false_positive_rate)}"
        yield f"anomalous                {with_interval(drawn.anomalous)}"
