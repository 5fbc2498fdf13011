"""The whole path on a folder of small NIfTI volumes: check, fit, score, evaluate, report."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from runner import Run

from normalcy.report.pictures import load_picture
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results

SHAPE = (18, 22, 14)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 0, 2.0, -30], [0, 1.25, 0, 7], [0, 0, 0, 1]])  # file axes: left, head, front


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Normal volumes of 6 subjects with 5 scans each, and test ones, three of them with a bright box."""
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    head = 800 * np.exp(-2 * (grid**2).sum(0))

    def write(name: str, box: bool = False) -> None:
        array = np.clip(head * rng.uniform(0.95, 1.05) + rng.normal(0, 10, SHAPE), 0, None).astype(np.int16)
        mask = np.zeros(SHAPE, np.uint8)
        if box:
            mask[4:9, 6:12, 4:8] = 1
            array[mask > 0] += 900
            truth = root / "ground_truth/box" / f"{Path(name).name[:-7]}_mask.nii.gz"
            truth.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(mask, AFFINE), truth)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), root / name)

    for subject in range(8):
        for scan in range(5):
            write(f"train/good/sub-{subject:02d}_run-{scan}.nii.gz")
    for i in range(3):
        write(f"test/good/{i}.nii.gz")
        write(f"test/box/{i}.nii.gz", box=True)
    (root / "train/good/sub-00_bad.nii.gz").write_bytes(b"\x1f\x8b damaged")
    return root


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("zscore", []),
        ("autoencoder", ["width=4", "latent=4", "size=16"]),
        ("vae", ["width=4", "latent=4", "size=16", "samples=1"]),
    ],
)
def test_fit_score_evaluate_report(run: Run, folder: Path, tmp_path: Path, method: str, words: list[str]):
    settings = [part for word in words for part in ("--set", word)]
    length = [] if method == "zscore" else ["--steps", 30]
    assert "Fitted" in run.good("fit", folder, "--method", method, *length, *settings, "--out", tmp_path / "model")
    assert "Scored 6 images" in run.good("score", tmp_path / "model", folder, "--out", tmp_path / "results")
    for i in range(3):
        written = nibabel.load(tmp_path / f"results/maps/test/box/{i}.nii.gz")
        assert written.shape == SHAPE
        np.testing.assert_array_equal(written.affine, AFFINE)
        values = written.get_fdata()
        assert values[4:9, 6:12, 4:8].mean() > 3 * values.mean(), "the box stands out where it is in the file"
    if method != "zscore":
        restored = nibabel.load(tmp_path / "results/restored/test/box/0.nii.gz")
        assert (restored.shape, restored.get_data_dtype()) == (SHAPE, np.int16)
        np.testing.assert_array_equal(restored.affine, AFFINE)
    metrics = evaluate(tmp_path / "results", resamples=20)
    assert metrics.image.auroc.value == 1.0
    assert metrics.pixel is not None
    assert metrics.pixel.auroc.value is not None
    assert metrics.pixel.auroc.value > 0.95
    page = Path(run.good("report", tmp_path / "results").strip()).read_text()
    assert "where the map is largest" in page
    assert "Inputs are not shown" not in page


def test_subjects_are_never_split(folder: Path):
    from normalcy.data.open import open_data
    from normalcy.data.splits import hold_out

    data = open_data(folder).select(split="train")
    rest, carved = hold_out(data.cases, 0.2, minimum=5)
    assert len(carved) >= 5
    assert not {data.cases[i] for i in rest} & {data.cases[i] for i in carved}


def test_bad_files_are_listed(run: Run, folder: Path, tmp_path: Path):
    assert run("check", folder) == 1
    output = run.out
    assert "error: train/good/sub-00_bad.nii.gz: cannot be read as a volume" in output
    run.good("fit", folder, "--method", "zscore", "--out", tmp_path / "model")
    (failed,) = json.loads((tmp_path / "model/detector.json").read_text())["data"]["failed"]
    name = hashlib.sha256(b"train/good/sub-00_bad.nii.gz").hexdigest()[:8]
    assert failed[0] == f"image {name}", "folders and files name patients"
    assert "Skipped train/good/sub-00_bad.nii.gz: " in run.err


def test_one_slice(run: Run, folder: Path, tmp_path: Path):
    """A detector of slices, and one slice of a volume to score."""
    rows = [
        f"{folder}/train/good/sub-0{s}_run-{k}.nii.gz[z={z}]" for s in range(1, 8) for k in range(5) for z in (5, 7)
    ]
    (tmp_path / "slices.csv").write_text("path\n" + "".join(f'"{row}"\n' for row in rows))
    run.good("fit", tmp_path / "slices.csv", "--method", "zscore", "--out", tmp_path / "model")
    name = f"{folder}/test/box/1.nii.gz[z=6]"
    run.good("score", tmp_path / "model", name, "--out", tmp_path / "results")
    results = read_results(tmp_path / "results")
    assert results.paths == ["1.nii.gz[z=6]"]
    file = results.file("maps", 0, ".nii.gz")
    assert file is not None
    written = nibabel.load(file)
    assert written.shape == (18, 1, 14), "the head is along the second axis of the file"


@pytest.mark.parametrize(
    "words", [["slices=z", "slice_body=0.05"], ["slices=xyz", "size=16"], ["tile=8", "tile_window=gaussian"]], ids=str
)
def test_slices_and_patches(run: Run, folder: Path, tmp_path: Path, words: list[str]):
    settings = [part for word in [*words, "view_score=0.9", "width=4", "latent=4"] for part in ("--set", word)]
    run.good("fit", folder, "--method", "autoencoder", *settings, "--steps", 30, "--out", tmp_path / "model")
    run.good("score", tmp_path / "model", folder, "--out", tmp_path / "results")
    results = read_results(tmp_path / "results")
    assert results.scores[results.labels == 1].min() > results.scores[results.labels == 0].max()
    written = nibabel.load(tmp_path / "results/maps/test/box/0.nii.gz")
    assert written.shape == SHAPE
    values = written.get_fdata()
    assert values[4:9, 6:12, 4:8].mean() > 3 * values.mean()
    assert nibabel.load(tmp_path / "results/restored/test/box/0.nii.gz").get_data_dtype() == np.int16
    table = tmp_path / "results/slices.csv"
    assert table.exists() == ("tile=8" not in words)
    if table.exists():
        rows = [line.split(",") for line in table.read_text().splitlines()[1:] if line.startswith("test/box/0")]
        assert {row[1] for row in rows} == set(words[0].partition("=")[2])
        strangest = max((row for row in rows if row[1] == "z"), key=lambda row: float(row[3]))
        assert 6 <= int(strangest[2]) < 12, "the box lies there along the file's second axis, which runs to the head"


def test_pictures_of_a_volume(run: Run, folder: Path, tmp_path: Path):
    """An image of one channel is shown in grey, as the input; a plane of values in colours."""
    small = (
        "size=16",
        "width=4",
        "prior_width=4",
        "prior_blocks=1",
        "halvings=2",
        "codes=8",
        "dimension=4",
        "copies=2",
    )
    words = [part for word in small for part in ("--set", word)]
    run.good("fit", folder, "--method", "vq_restoration", "--steps", 4, *words, "--out", tmp_path / "model")
    run.good("score", tmp_path / "model", folder, "--out", tmp_path / "results")
    shown = load_picture(read_results(tmp_path / "results"), 0, None, None).others
    assert {name: picture.ndim for name, picture in shown.items()} == {
        "changed_codes": 2,
        "code_nll": 2,
        "reconstruction": 3,
    }
