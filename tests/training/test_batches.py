"""The batches of a stage: epochs, repeats, shares of processes."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_killed
from probe import Probe, numbers, same, staged, train, values
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.method import Objective, Stage
from normalcy.training.batches import ShuffledBatches, batch_size_of, batches_per_epoch
from normalcy.training.settings import TrainSettings


def test_an_epoch_draws_each_image_once_in_a_new_order():
    seen: list[list[int]] = []
    method = Probe()

    def loss(x: Tensor) -> dict[str, Tensor]:
        seen.append(values(x))
        return {"loss": method.a**2}

    method.given = [Stage("all", [Objective(loss, [method.a])], epochs=2, batch_size=4)]
    train(method, numbers(12))
    first, second = list(chain(*seen[:3])), list(chain(*seen[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != sorted(first)


def test_repeats_draw_new_batches():
    seen: dict[str, list[list[int]]] = {"critic": [], "generator": []}
    method = Probe()

    def loss(who: str, parameter: nn.Parameter) -> Callable[[Tensor], dict[str, Tensor]]:
        return lambda x: seen[who].append(values(x)) or {"loss": parameter**2}  # type: ignore[func-returns-value]

    critic = Objective(loss("critic", method.a), [method.a], repeats=3)
    generator = Objective(loss("generator", method.b), [method.b])
    method.given = [Stage("game", [critic, generator], epochs=1, batch_size=2)]
    records = train(method, numbers(12))
    assert len(records) == len(seen["generator"]) == 2
    assert sorted(chain(*seen["critic"])) == list(range(12)), "three batches of two, in each of two steps"
    assert seen["generator"] == [seen["critic"][2], seen["critic"][5]], (
        "the second objective takes the round's last batch"
    )


def test_batch_that_cannot_be_shared():
    with pytest.raises(SettingsError, match="A batch of 2 images cannot be shared by 3 devices"):
        batch_size_of(Stage("any"), TrainSettings(devices=3, batch_size=2), 100)


def as_memmap(x: Tensor, folder: Path) -> Any:
    np.save(folder / "images.npy", x.numpy())
    return np.load(folder / "images.npy", mmap_mode="r")


class Listing:
    """Images read one by one when asked for, as from files."""

    def __init__(self, x: Tensor) -> None:
        self.images, self.shape = [image.numpy() for image in x], tuple(x.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index] if np.ndim(index) == 0 else np.stack([self.images[i] for i in index])


def test_arrays_files_and_lists_train_like_tensors(tmp_path: Path):
    x = train_killed.images(16)
    methods = []
    for images in (x, x.numpy(), as_memmap(x, tmp_path), Listing(x)):
        method = staged()
        train(method, images, steps=6)
        methods.append(method)
    assert all(same(methods[0], other) for other in methods[1:])


@pytest.mark.parametrize(("count", "size"), [(12, 4), (13, 4), (10, 4), (5, 4), (4, 4), (1, 1), (7, 3)])
def test_an_epoch_has_every_image_and_full_batches_of_different_images(count: int, size: int):
    batches = ShuffledBatches(count, size, seed=3, stage=1)
    length = batches_per_epoch(count, size)
    assert length == -(-count // size)
    for epoch in range(3):
        rows = [batches.rows(epoch * length + place) for place in range(length)]
        assert all(len(part) == len(set(part.tolist())) == size for part in rows)
        flat = np.concatenate(rows)
        assert sorted(flat[:count].tolist()) == list(range(count)), "each image once"
        assert flat[count:].tolist() == flat[: length * size - count].tolist(), "then those that the epoch began with"


def test_batches_depend_on_their_number_alone():
    forwards, backwards = (ShuffledBatches(10, 4, seed=0, stage=0) for _ in range(2))
    in_order = [forwards.rows(number).tolist() for number in range(9)]
    assert [backwards.rows(number).tolist() for number in reversed(range(9))] == in_order[::-1]
    assert in_order[:3] != in_order[3:6], "a new order in each epoch"
    assert ShuffledBatches(10, 4, seed=1, stage=0).rows(0).tolist() != in_order[0]
    assert ShuffledBatches(10, 4, seed=0, stage=1).rows(0).tolist() != in_order[0]


def test_filled_batches_use_all_images_equally_often():
    batches = ShuffledBatches(10, 4, seed=0, stage=0)
    times = np.bincount(np.concatenate([batches.rows(number) for number in range(3 * 500)]), minlength=10)
    assert times.min() >= 500, "at least once per epoch"
    assert (
        abs(times / times.mean() - 1).max() < 0.06
    )  # standard deviation of a count: sqrt(500 * 0.2 * 0.8) of 600, 1.5 %


def test_a_remainder_of_one_image_leaves_batch_norm_its_statistics():
    """Nine images in batches of four: a last batch of one alone would have no variance."""
    method, sizes = Probe(), []
    method.norm = nn.BatchNorm1d(1)

    def loss(x: Tensor) -> dict[str, Tensor]:
        sizes.append(len(x))
        return {"loss": method.norm(x.flatten(1)).square().mean() + method.a**2}

    method.given = [Stage("all", [Objective(loss, [method.a, *method.norm.parameters()])], epochs=2, batch_size=4)]
    train(method, numbers(9))
    assert sizes == [4] * 6
    assert float(method.norm.running_var) > 1
