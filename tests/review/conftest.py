"""Results folders to review: photographs, volumes in several orientations, slides; made once, copied for each test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from normalcy import Detector
from normalcy.data.open import open_data
from normalcy.results.predict import score_into

SIZE = (48, 64)


def texture(rng: np.random.Generator, spot: bool) -> tuple[np.ndarray, np.ndarray]:
    smooth = gaussian_filter(rng.normal(size=SIZE), 2)
    image = np.clip(128 + 25 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    mask = np.zeros(SIZE, bool)
    if spot:
        row, column = rng.integers(8, 30, 2)
        mask[row : row + 9, column : column + 11] = True
        image[mask] = 250
    return image, mask


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``: normal training images; ``line``: 30 new images, every third with a spot; ``model`` and ``results``."""
    root = tmp_path_factory.mktemp("review")
    rng = np.random.default_rng(0)
    for folder, count in (("data", 80), ("line", 30)):
        (root / folder).mkdir()
        for k in range(count):
            image, mask = texture(rng, folder == "line" and k % 3 == 0)
            Image.fromarray(image).save(root / folder / f"{k:02d}.png")
            if mask.any():
                (root / "truth").mkdir(exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"truth/{k:02d}.png")
    detector = Detector("pca", size=32, false_alarms=0.1).fit(str(root / "data"))
    detector.save(root / "model")
    line = str(root / "line")
    score_into(detector, open_data(line), root / "results", decision=detector.decide(), spec=line)
    return root


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    """A copy of the results to review."""
    return Path(shutil.copytree(made / "results", tmp_path / "results"))


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of volumes that are the same head in RAS, LPS, LPI, PIR and an oblique space, made without a model."""
    nibabel = pytest.importorskip("nibabel")
    from normalcy.data.dataset import DataSet, Item
    from normalcy.results.predict import predict
    from normalcy.results.run import MapRange, Model, Run, Scored, Thresholds
    from normalcy.scoring import Result

    root = tmp_path_factory.mktemp("volumes")
    (root / "data").mkdir()
    rng = np.random.default_rng(0)
    shape = (20, 24, 16)
    grid = np.indices(shape)
    head = np.where(sum(((g - n / 2) / (n / 2.2)) ** 2 for g, n in zip(grid, shape)) < 1, 500, 0)
    head = (head + rng.normal(0, 20, shape) * (head > 0)).clip(0).astype(np.int16)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = -20, -30, -10
    for code in ("RAS", "LPS", "LPI", "PIR"):
        image = nibabel.Nifti1Image(head, affine)
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(code)
        )
        nibabel.save(image.as_reoriented(turn), root / f"data/{code.lower()}.nii.gz")
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = affine.copy()
    oblique[:3, :3] = turn @ affine[:3, :3]
    nibabel.save(nibabel.Nifti1Image(head[::-1], oblique), root / "data/oblique.nii.gz")
    data: DataSet = open_data(str(root / "data"))

    def scored() -> list[Result]:
        found = []
        for i, item in enumerate(data.items):
            values = np.zeros(data.size(i), np.float32)
            values[5, 8, 12] = 2.0 + i
            assert isinstance(item, Item)
            found.append(Result(item, 2.0 + i, None, None, values, None, None, None, {}, data.space(i)))
        return found

    span: MapRange = (0.0, 8.0)
    spec = str(root / "data")
    about = Scored("heads", spec=spec, base="/", fingerprint=data.fingerprint(), medical=True)
    run = Run(Model("zscore"), about, Thresholds(pixel_threshold=1.0), map_range=span)
    predict(scored(), run, data, root / "results")
    return root


@pytest.fixture(scope="session")
def slide_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one slide with a blue square."""
    pytest.importorskip("tiffslide")
    import tifffile

    from normalcy.data.slides import Slide, TileSettings
    from normalcy.results.slides import score_slides

    root = tmp_path_factory.mktemp("slides")
    (root / "normal").mkdir()
    for number, name in enumerate(("normal/0", "normal/1", "odd")):
        odd = name == "odd"
        rng = np.random.default_rng(number)
        pixels = np.full((768, 1024, 3), 245, np.uint8)
        noise = rng.normal(0, 6, (512, 768, 1))
        pixels[128:640, 128:896] = np.clip(np.array([200, 130, 170]) + noise, 0, 255).astype(np.uint8)
        if odd:
            pixels[256:384, 512:640] = (40, 60, 160)
        with tifffile.TiffWriter(root / f"{name}.tif") as file:
            for level in range(2):
                k = 2**level
                file.write(pixels[::k, ::k], tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=int(level > 0),
                           resolution=(2e4 / k, 2e4 / k), resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    detector = Detector("zscore", false_alarms=0.1).fit(f"slides:{root / 'normal'},tile=64")
    score_slides(detector, [Slide(root / "odd.tif", TileSettings(tile=64))], root / "results", cell=16)
    return root


Copy = Callable[[Path], Path]


@pytest.fixture
def copy_of(tmp_path: Path) -> Copy:
    """A copy of a results folder that a test may write to."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))


@pytest.fixture
def dicom() -> Callable[[Path], tuple[str, str]]:
    """Writes a CT of four slices of a patient into ``data`` and results of it into ``results``; the UIDs of series and study."""
    pydicom = pytest.importorskip("pydicom")
    from normalcy.results.predict import predict
    from normalcy.results.run import Model, Run, Scored
    from normalcy.scoring import Result

    def write(root: Path) -> tuple[str, str]:
        (root / "data").mkdir()
        uid = pydicom.uid.generate_uid
        series, study, frame = str(uid()), str(uid()), str(uid())
        for k in range(4):
            d = pydicom.Dataset()
            d.file_meta = pydicom.dataset.FileMetaDataset()
            d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
            d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = uid()
            d.SeriesInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID = series, study, frame
            d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "DOE^JANE", "SECRET-4711", "19700101", "F"
            d.StudyID, d.StudyDate, d.StudyTime, d.AccessionNumber = "1", "20200101", "120000", "A77"
            d.InstitutionName, d.ReferringPhysicianName = "St Elsewhere", "Roe^Richard"
            d.Modality, d.SeriesNumber, d.InstanceNumber = "CT", 1, k + 1
            d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 3 * k], [1, 0, 0, 0, 1, 0]
            d.PixelSpacing, d.SliceThickness = [1, 1], 3
            d.Rows = d.Columns = 16
            d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
            d.BitsAllocated = d.BitsStored = 16
            d.HighBit, d.PixelRepresentation, d.RescaleSlope, d.RescaleIntercept = 15, 1, 1, 0
            d.PixelData = np.random.default_rng(k).integers(0, 500, (16, 16)).astype("<i2").tobytes()
            pydicom.dcmwrite(root / f"data/{k}.dcm", d, enforce_file_format=True)
        data = open_data(str(root / "data"))
        values = np.random.default_rng(0).random(data.size(0)).astype(np.float32)
        result = Result(data.items[0], 1.0, None, None, values, None, None, None, {}, data.space(0))
        scored = Scored("ct", spec=str(root / "data"), base="/", fingerprint=data.fingerprint(), medical=True)
        predict([result], Run(Model("zscore"), scored), data, root / "results")
        return series, study

    return write
