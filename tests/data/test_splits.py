import numpy as np
import pytest

from normalcy.data.dataset import Item
from normalcy.data.open import as_dataset
from normalcy.data.splits import hold_out, train_test
from normalcy.errors import DataError


def labelled(items):
    return as_dataset(np.zeros((len(items), 4, 4), np.uint8)).with_items(items)


@pytest.mark.parametrize("per_case", [1, 3, 7])
def test_carve_out_keeps_cases_whole(per_case):
    cases = [f"case {i // per_case}" for i in range(420)]
    rest, carved = hold_out(cases, seed=3)
    assert 42 <= len(carved) < 42 + per_case
    assert sorted([*rest, *carved]) == list(range(420))
    assert not {cases[i] for i in rest} & {cases[i] for i in carved}


def test_carve_out_depends_on_the_seed_and_not_on_the_order():
    cases = [f"{i}" for i in range(200)]
    once, again, other = (hold_out(cases, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert set(once) != set(other)
    shuffled = [str(i) for i in np.random.default_rng(0).permutation(200)]
    assert {shuffled[i] for i in hold_out(shuffled, seed=0)[1]} == {cases[i] for i in once}


def test_carve_out_takes_at_least_the_minimum_but_never_more_than_half():
    assert len(hold_out([str(i) for i in range(100)])[1]) == 20
    with pytest.warns(UserWarning, match="only 15 of 30 normal images"):
        rest, carved = hold_out([str(i) for i in range(30)])
    assert (len(rest), len(carved)) == (15, 15)
    with pytest.warns(UserWarning, match="only 0 of 50"):
        assert len(hold_out(["one patient"] * 50)[1]) == 0
    with pytest.warns(UserWarning, match="only 0 of 1"):
        assert hold_out(["a"])[0].tolist() == [0]
    big = ["big"] * 70 + [str(i) for i in range(30)]  # the big case would be more than half
    assert all(i >= 70 for i in hold_out(big)[1])
    with pytest.raises(DataError, match="fraction between 0 and 1"):
        hold_out(["a", "b"], fraction=1.5)


def test_train_test():
    items = [Item(f"{i}", f"case {i // 2}", int(i in (3, 8))) for i in range(100)]
    data = train_test(labelled(items), 0.2, seed=1)
    train, test = data.select(split="train"), data.select(split="test")
    assert len(train) + len(test) == 100
    assert not set(train.cases) & set(test.cases)
    assert not train.labels.any()
    assert {"case 1", "case 4"} <= set(test.cases)
    assert len(test) == 4 + 20  # of 96 images of normal cases 19.2 are wanted: whole cases of two
    assert train_test(labelled(items), 0.2, seed=1).items == data.items


def test_train_test_refuses_what_it_cannot_split():
    normal = [Item(str(i), str(i), 0) for i in range(4)]
    for items, words in (
        ([Item("a", "a", 0, None, "train"), *normal], "without a split"),
        ([Item("a", "a"), *normal], "1 without, as a"),
        ([Item(str(i), "same", 0) for i in range(4)], "at least two cases"),
    ):
        with pytest.raises(DataError, match=words):
            train_test(labelled(items))
    with pytest.raises(DataError, match="test fraction"):
        train_test(labelled(normal), 0)
    assert {item.split for item in train_test(labelled(normal), 0.9).items} == {"train", "test"}
