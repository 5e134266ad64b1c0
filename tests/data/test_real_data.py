"""Real images, from ../shared/data; skipped where these are missing."""

from __future__ import annotations

import pytest
import torch

from sidestep.data import Data, DataConfig, MemorySet, color_histogram, load_data

# Sixty thousand images are decoded.
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def data(cifar10: str) -> Data:
    return load_data(DataConfig(source=cifar10), statistics=color_histogram)


@slow
def test_cifar10_has_its_counts_and_classes(data: Data) -> None:
    assert [len(images or []) for images in (data.train, data.val, data.test)] == [45_000, 5_000, 10_000]
    assert (data.num_classes, data.input_size) == (10, (32, 32))
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    assert isinstance(data.test, MemorySet)
    assert data.test.labels.bincount().tolist() == [1000] * 10


@slow
def test_cifar10_has_its_channel_statistics(data: Data) -> None:
    assert isinstance(data.train, MemorySet) and isinstance(data.val, MemorySet)
    pixels = torch.cat([data.train.images, data.val.images]).permute(1, 0, 2, 3).reshape(3, -1)
    counts = torch.stack([channel.bincount(minlength=256) for channel in pixels]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * values**2).sum(1) / counts.sum(1) - mean**2).sqrt()
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]).double(), rtol=0, atol=1e-3)


@slow
def test_cifar10_histograms_are_precomputed(data: Data) -> None:
    assert isinstance(data.train, MemorySet)
    batch = next(data.train.train_batches(epoch=0, batch_size=256, seed=0))
    assert batch.statistics is not None and batch.statistics.shape == (256, 192)
    assert batch.images.shape == (256, 3, 32, 32)
    # specs/rdinet.md: mean distance 0.37 over batches of 256 (other images, so not to all digits)
    distances = torch.pdist(batch.statistics)
    assert 0.3 < float(distances.mean()) < 0.45


@slow
def test_cifar10_evaluates_alike_from_memory_and_as_a_stream(data: Data, cifar10: str) -> None:
    streamed = load_data(
        DataConfig(source=cifar10, storage="stream", workers=0), statistics=color_histogram, splits=("test",)
    ).test
    assert data.test is not None and streamed is not None
    one, other = (next(images.eval_batches(batch_size=200)) for images in (data.test, streamed))
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert one.statistics is not None and other.statistics is not None
    assert torch.equal(one.statistics, other.statistics)


def test_photographs_stream_at_their_size(imagenette: str) -> None:
    data = load_data(DataConfig(source=imagenette, storage="stream", workers=0), statistics=color_histogram)
    assert [len(images or []) for images in (data.train, data.val, data.test)] == [1080, 120, 400]
    assert (data.num_classes, data.input_size) == (10, (224, 224))
    assert data.train is not None
    batch = next(data.train.train_batches(epoch=0, batch_size=16, seed=0))
    assert batch.images.shape == (16, 3, 224, 224)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.statistics is not None and batch.statistics.shape == (16, 192)


def test_photographs_of_one_size_fit_into_memory_and_can_be_shrunk(imagenette: str) -> None:
    data = load_data(DataConfig(source=imagenette, image_size=64, workers=0), splits=("test",))
    assert isinstance(data.test, MemorySet)
    assert data.test.images.shape == (400, 3, 64, 64)
    grey = (data.test.images[:, 0] == data.test.images[:, 1]).flatten(1).all(dim=1)
    assert int(grey.sum()) >= 7  # the validation split has seven greyscale photographs
