"""Labelled data for the applications: what is read, held out, drawn and refused."""

from __future__ import annotations

import numpy
import pytest
import torch

pytest.importorskip("torchvision")

from ganfast.applications.labelled import few_labels, for_validation, load_labelled
from ganfast.training import DataError, load_images


def save(tmp_path, labels):
    images = numpy.zeros((len(labels), 8, 8), dtype=numpy.uint8)
    images[:, 0, 0] = numpy.arange(len(labels))  # so that each can be told from the others
    numpy.savez(tmp_path / "images.npz", x=images, y=numpy.array(labels))
    return f"npz:{tmp_path / 'images.npz'}"


def test_a_fifth_is_held_out_and_labels_are_numbered_without_gaps(tmp_path):
    data = load_labelled(save(tmp_path, [3, 7] * 10))
    assert (len(data.train), len(data.test), data.classes) == (16, 4, ("3", "7"))
    seen = torch.cat([data.train.images, data.test.images])[:, 0, 0, 0].sort().values
    assert seen.tolist() == list(range(20))
    for part in (data.train, data.test):
        assert torch.equal(part.labels, part.images[:, 0, 0, 0].long() % 2)


def test_what_has_no_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"one class only \(5\)"):
        load_labelled(save(tmp_path, [5] * 6))
    numpy.savez(tmp_path / "bare.npz", x=numpy.zeros((4, 8, 8), dtype=numpy.uint8))
    with pytest.raises(DataError, match="has no labels"):
        load_labelled(f"npz:{tmp_path / 'bare.npz'}")
    with pytest.raises(DataError, match="has no test set"):
        load_images("digits", train=False)


def test_subfolders_are_classes(tmp_path):
    from PIL import Image

    for place in ("dog/a.png", "cat/b.png", "cat/old/c.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / place)
    data = load_images(f"folder:{tmp_path}", image_size=8)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    Image.new("L", (8, 8)).save(tmp_path / "d.png")
    assert load_images(f"folder:{tmp_path}", image_size=8).labels is None


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_few_labels_are_of_all_classes_alike(count):
    labels = torch.arange(30) % 3
    chosen = few_labels(labels, count, seed=1)
    assert len(chosen.unique()) == count
    counts = labels[chosen].bincount(minlength=3)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(chosen, few_labels(labels, count, seed=1))
    assert not torch.equal(chosen, few_labels(labels, count, seed=2))


@pytest.mark.parametrize(("count", "reason"), [(2, "2 labels for 3 classes"), (40, "there are 10")])
def test_labels_that_there_are_not(count, reason):
    with pytest.raises(DataError, match=reason):
        few_labels(torch.arange(30) % 3, count, seed=0)


def test_validation_images_are_held_out_of_the_training_set(tmp_path):
    data = load_labelled(save(tmp_path, [3, 7, -1, 7] * 10))
    held = for_validation(data, 6)
    before, train, test = (
        set(images[:, 0, 0, 0].tolist())
        for images in (data.train.images, held.train.images, held.test.images)
    )
    assert train | test == before
    assert len(train) == len(before) - 6
    assert len(test) == 6
    assert (held.test.labels >= 0).all()
    assert torch.equal(held.test.labels, (held.test.images[:, 0, 0, 0] % 4 != 0).long())
    assert torch.equal(for_validation(data, 6).test.images, held.test.images)
    labelled = int((data.train.labels >= 0).sum())
    with pytest.raises(DataError, match=f"{labelled} images cannot be held out of {labelled}"):
        for_validation(data, labelled)
