"""Networks and batches on a GPU: what a CPU computes, masked and gathered, of every kind."""

from pathlib import Path

import pytest
import torch

from sidestep.data.augment import crop_and_flip, draw_epoch
from sidestep.data.augment_config import AugmentConfig
from sidestep.data.data_config import DataConfig
from sidestep.data.memory_set import MemorySet
from sidestep.evaluation.report import evaluate_network
from sidestep.execution.execution import gathered, masked
from sidestep.runs.run_folder import open_run
from sidestep.runs.train import train
from sidestep.training.devices import Devices
from sidestep.types import Batch
from tests.data.test_histogram import random_images
from tests.training.test_methods_train import VARIANTS, tiny

CPU = Devices(accelerator="cpu", logger="none")


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_decides_and_counts_as_a_cpu(variant: str, tmp_path: Path) -> None:
    folder = train(tiny(variant), tmp_path / "run", devices=CPU)
    reports = []
    for device in ("cpu", "cuda"):
        opened = open_run(folder, "last")
        torch.manual_seed(0)
        images = torch.randn(64, 3, 16, 16).to(device)
        batch = Batch(images=images, labels=torch.arange(64, device=device) % 10)
        for execution in (masked, gathered):
            report = evaluate_network(
                opened.network.to(device), [batch], opened.cost, num_classes=10, execution=execution
            )
            reports.append(report)
    for report in reports[1:]:
        assert report.fraction_of_full == pytest.approx(reports[0].fraction_of_full, abs=0.01)
        assert report.accuracy == pytest.approx(reports[0].accuracy, abs=0.02)


@pytest.mark.gpu
def test_batches_of_a_gpu_are_those_of_a_cpu() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (96, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(96) % 10
    augment = AugmentConfig(rand_augment=2, erase=0.25, mixup=0.2, cutmix=1.0)
    config = DataConfig(source="digits", flip="alternating", crop_fill="mirror", augment=augment)
    on_cpu, on_gpu = (
        list(MemorySet(images, labels, config, device=device).train_batches(epoch=1, batch_size=32, seed=3))
        for device in ("cpu", "cuda")
    )
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.images.is_cuda
        assert torch.allclose(one.images, other.images.cpu(), atol=1e-4)
        assert torch.equal(one.labels, other.labels.cpu())
        assert one.share is not None and other.share is not None
        assert torch.allclose(one.share, other.share.cpu())


@pytest.mark.gpu
def test_a_gpu_crops_and_mirrors_as_the_cpu_does() -> None:
    images, cpu, cuda = random_images(64), torch.device("cpu"), torch.device("cuda")
    on_cpu = crop_and_flip(images, draw_epoch(64, seed=1, epoch=2, padding=4, flip=True, device=cpu), 4)
    draws = draw_epoch(64, seed=1, epoch=2, padding=4, flip=True, device=cuda)
    assert torch.equal(crop_and_flip(images.to(cuda), draws, 4).cpu(), on_cpu)
