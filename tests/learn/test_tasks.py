from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from mpcfl.learn.tasks.breast_cancer import FEATURE_MAX, FEATURE_MIN, BreastCancerTask
from mpcfl.learn.tasks.digits import DigitsTask


@pytest.mark.parametrize(
    ("task", "train", "test"), [(DigitsTask(), 1437, 360), (BreastCancerTask(), 455, 114)]
)
def test_split_has_the_documented_sizes(
    task: DigitsTask | BreastCancerTask, train: int, test: int
) -> None:
    assert len(task.party_data(0, 1)[0]) == train
    assert len(task.test_data()[0]) == test


def test_split_keeps_the_classes_in_proportion() -> None:
    _, labels = DigitsTask().test_data()
    counts = np.bincount(labels.numpy(), minlength=10)
    assert counts.min() >= 34  # 360 records of 10 classes with 174 to 183 records of 1,797 each
    assert counts.max() <= 37


def test_feature_limits_are_those_of_the_published_table() -> None:
    description = load_breast_cancer().DESCR
    rows = [line.rsplit(maxsplit=2) for line in description.splitlines() if "): " in line]
    table = np.array([[float(low), float(high)] for _, low, high in rows])
    assert table.shape == (30, 2)
    assert table[:, 0].tolist() == list(FEATURE_MIN)
    assert table[:, 1].tolist() == list(FEATURE_MAX)
