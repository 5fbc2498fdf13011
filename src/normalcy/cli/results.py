"""Commands about a results folder: evaluate, report, dicom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from normalcy.cli import options as o
from normalcy.cli.printing import complain, progress, record, show, show_classes

if TYPE_CHECKING:
    from normalcy.results.metrics import Interval, Metrics


@o.with_json
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
    _show_metrics(found)
    show_classes({"": found})
    for note in found.notes[1:]:
        complain(f"Note: {note}")


def report(
    results: o.AnyResults,
    data: o.SourceImages = None,
    data_root: o.DataRoot = None,
    neurological: o.Neurological = False,
    pictures: o.Pictures = False,
) -> None:
    """Write a self-contained HTML report.

    Shows the input images if they are found and have not changed, or are given with --data.
    """
    from normalcy.report import write_comparison, write_report
    from normalcy.results.folder import read_results
    from normalcy.results.pictures import write_pictures

    if pictures:
        show(f"Wrote {write_pictures(read_results(results))} maps as PNG -> {results / 'maps'}")
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


@dataclass(frozen=True)
class Row:
    """A line of ``evaluate``: a metric and its value, with an interval where it has one; or a count of a number."""

    metric: str
    interval: Interval | None = None
    count: int | None = None
    of: int | None = None
    note: str = ""

    def show(self) -> None:
        from normalcy.report.text import with_interval

        ends = {} if self.interval is None else {end: getattr(self.interval, end) for end in ("value", "low", "high")}
        counted = {} if self.count is None else {"count": self.count, "of": self.of}
        if not record("metrics", metric=self.metric, **ends, **counted):
            value = with_interval(self.interval) if self.count is None else f"{self.count} of {self.of}"
            show(f"{self.metric:<24} {value}{self.note}")


def _show_metrics(found: Metrics) -> None:
    image, case, pixel, patch, region = found.image, found.case, found.pixel, found.patch, found.region
    show(f"{image.normal} normal and {image.anomalous} anomalous images")
    if case is not None:
        show(f"of {case.normal} normal and {case.anomalous} anomalous cases")
        if case.auroc is not None:
            Row("case AUROC", case.auroc).show()
    Row("image AUROC", image.auroc).show()
    Row("image average precision", image.average_precision).show()
    Row("FPR at 95 % TPR", image.fpr_at_95_tpr).show()
    decided = image.at_threshold
    if decided is not None:
        Row("false alarms", count=decided.false_positives, of=image.normal).show()
        Row("anomalies detected", count=decided.true_positives, of=image.anomalous).show()
    if pixel is not None:
        Row("pixel AUROC", pixel.auroc).show()
        Row(f"AUPRO ({pixel.aupro.limit:g})", pixel.aupro).show()
        if pixel.regions is not None:
            Row("regions detected", count=pixel.regions.hit, of=pixel.regions.total).show()
    if patch is not None:
        Row(f"patch AUROC (side {patch.size})", patch.auroc).show()
    if region is not None:
        limits = " (1/8 to 8 false regions per image)"
        Row("mean region sensitivity", region.mean_sensitivity, note=limits).show()
    if found.drawn is not None:
        drawn = found.drawn
        show(f"of all images, estimated from {drawn.images} reviewed in the informative order:")
        for name, rate in (
            ("precision", drawn.precision),
            ("recall", drawn.recall),
            ("false-positive rate", drawn.false_positive_rate),
            ("anomalous", drawn.anomalous),
        ):
            Row(name, rate).show()
