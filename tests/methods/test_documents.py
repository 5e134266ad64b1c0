"""What the documents say about files, settings and numbers is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sidestep.cost.macs import measure_cost
from sidestep.networks.msdnet import MsdNet
from tests.networks.test_msdnet import PUBLISHED, on_meta
from tests.paths import RECIPES

ROOT = RECIPES.parent
PAGES = sorted(page for page in ROOT.glob("docs/**/*.md") if "made" not in page.parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    modules = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    recipes = re.findall(r"`(recipes/\w+\.yaml)`", text)
    places = (ROOT / "src" / "sidestep", ROOT)
    missing = [name for name in modules if not any((place / name).is_file() for place in places)]
    missing += [name for name in recipes if not (ROOT / name).is_file()]
    assert not missing


def first_exit(network: MsdNet, size: int) -> float:
    cost = measure_cost(network, (size, size))
    assert cost.exits is not None
    return cost.fixed + cost.exits[0].item()


def test_the_first_exits_of_msdnet_cost_what_its_page_says() -> None:
    page = " ".join((ROOT / "docs" / "methods" / "early_exit.md").read_text().split())
    found = re.search(r"multiply-adds alone, as everywhere here, ours are ([\d.]+) M and ([\d.]+) M", page)
    assert found is not None
    networks = {name: on_meta(**PUBLISHED[name][0]) for name in ("cifar10_anytime", "imagenet_7")}
    with torch.no_grad():
        macs = [first_exit(networks["cifar10_anytime"], 32), first_exit(networks["imagenet_7"], 224)]
    assert list(found.groups()) == [f"{count / 1e6:.1f}" for count in macs] == ["13.2", "502.0"]
    operations = re.search(r"these are ([\d.]+) M against ([\d.]+) M on CIFAR-10", page)
    assert operations is not None
    assert operations.groups() == ("15.1", f"{PUBLISHED['cifar10_anytime'][2] / 1e6:.1f}")


def test_departures_are_named_where_users_read() -> None:
    said = {
        name: " ".join((ROOT / "docs" / "methods" / f"{name}.md").read_text().split())
        for name in ("rdi_net", "convnet_aig", "skipnet", "blockdrop")
    }
    assert "Eq. 6 has no BatchNorm" in said["rdi_net"]
    assert "on CIFAR for the second layer of the gate, on ImageNet for both layers" in said["convnet_aig"]
    assert "`alpha: 0.01, scale_task: true`" in said["skipnet"]
    assert "78,150 parameters" in said["blockdrop"] and "`model.skip: linear`" in said["blockdrop"]
