"""Weight files as training scripts leave them: nests, wrappers, averages, other classes and networks."""

from __future__ import annotations

import random
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sidestep.backbones.backbone import Backbone
from sidestep.backbones.static_weights import load_static_weights
from sidestep.errors import CheckpointError, RecipeError
from sidestep.networks.models import build_backbone
from sidestep.networks.ranet import RaNet, RaNetConfig
from tests.doubles import model_config

State = dict[str, Tensor]


def backbone(name: str = "cifar_resnet8", num_classes: int = 10, **settings: Any) -> Backbone:
    return build_backbone(model_config(name, **settings), num_classes)


STATE: State = {key: value.clone() for key, value in backbone().state_dict().items()}


def other(shift: float = 1.0) -> State:
    """Return a state dict of the same network with other weights."""
    return {key: value + shift if value.is_floating_point() else value for key, value in STATE.items()}


def below(start: str, state: State = STATE) -> State:
    return {start + key: value for key, value in state.items()}


def wrapped(state: State, wrapper: str) -> State:
    """Return a state dict of a network whose blocks a wrapper is around, one by one."""
    return {key.replace(".0.", f".0.{wrapper}.", 1) if "layer" in key else key: t for key, t in state.items()}


AGENT = {"features.0.weight": torch.zeros(3), "logit.bias": torch.zeros(2)}
FILES: dict[str, Any] = {
    "bare": STATE,
    "_orig_mod.": below("_orig_mod."),
    "module._orig_mod.": below("module._orig_mod."),
    "_orig_mod.module.": below("_orig_mod.module."),
    "state_dict, model.": {"state_dict": below("model.")},
    "Lightning": {"epoch": 3, "state_dict": below("model.net._orig_mod.") | {"loss.weight": torch.ones(10)}},
    "model": {"model": STATE, "epoch": 3},
    "model, module.": {"model": below("module."), "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    "state_dict_ema": {"state_dict_ema": STATE},
    "ema": {"ema": below("module."), "step": torch.tensor(5)},
    "net": {"net": below("module."), "acc": 92.6},
    "resnet, agent": {"resnet": STATE, "agent": AGENT, "reward": 0.5},
    "agent": {"agent": STATE},
    "model_state": {"run": {"model_state": {"backbone": below("encoder.")}}},
    "an average": {"n_averaged": torch.tensor(7), **below("module.")},
    "a list": {"models": [below("module."), AGENT]},
    "modules as nests": {
        name: {key.partition(".")[2]: t for key, t in STATE.items() if key.startswith(f"{name}.")}
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "fc")
    },
    "blocks compiled": wrapped(STATE, "_orig_mod"),
    "blocks sharded": {"model": wrapped(below("module."), "_fsdp_wrapped_module")},
    "teacher that is another network": {"student": STATE, "teacher": {"fc.weight": torch.zeros(3)}},
    "twice the same": {"state_dict": STATE, "state_dict_ema": dict(STATE)},
}


def saved(folder: Path, content: Any) -> Path:
    path = folder / "w.pth"
    torch.save(content, path)
    return path


def assert_loaded(network: nn.Module, state: State) -> None:
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", FILES)
def test_the_network_in_a_file_is_found_whatever_is_around_it(name: str, tmp_path: Path) -> None:
    network = backbone()
    assert load_static_weights(network, saved(tmp_path, FILES[name])) == []
    assert_loaded(network, STATE)


@pytest.mark.parametrize("start", ["", "_orig_mod.", "model.module.", "ema.net."])
def test_safetensors_can_have_such_names_too(start: str, tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in below(start).items()}, tmp_path / "w.safetensors")
    network = backbone()
    load_static_weights(network, tmp_path / "w.safetensors")
    assert_loaded(network, STATE)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".ckpt", ".pth.tar", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_what_a_file_is_says_its_content_and_not_its_name(kind: str, suffix: str, tmp_path: Path) -> None:
    path, network = tmp_path / f"weights{suffix}", backbone()
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in STATE.items()}, path)
    else:
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=kind == "zip")
    load_static_weights(network, path)
    assert_loaded(network, STATE)


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    nn.DataParallel,
    AveragedModel,
    # Of a module it is one.
    lambda network: torch.compile(network, backend="eager"),  # type: ignore[return-value]
    lambda network: AveragedModel(nn.DataParallel(network)),
    lambda network: nn.ModuleDict({"encoder": network, "projector": nn.Linear(3, 3)}),
]


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=["parallel", "averaged", "compiled", "both", "part"])
def test_weights_of_what_torch_wraps_a_network_in(
    wrapper: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    mine, theirs = backbone(), backbone()
    load_static_weights(mine, saved(tmp_path, {"model": wrapper(theirs).state_dict()}))
    assert_loaded(mine, theirs.state_dict())


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"state_dict": other(), "state_dict_ema": STATE}, "state_dict_ema", "state_dict"),
        ({"model": other(), "model_ema": below("module.")}, "model_ema", "model"),
        ({"ema_state_dict": STATE, "state_dict": other()}, "ema_state_dict", "state_dict"),
        ({"student": other(), "teacher": STATE}, "teacher", "student"),
        ({"student": other(), "model": STATE}, "model", "student"),
    ],
)
def test_of_several_that_fit_the_average_is_taken_and_that_is_said(
    content: Any, taken: str, left: str, tmp_path: Path
) -> None:
    network, path = backbone(), saved(tmp_path, content)
    assert load_static_weights(network, path) == [
        f"of the networks in {path} that fit {taken} is taken, not {left}"
    ]
    assert_loaded(network, STATE)


def test_a_file_whose_networks_are_of_equal_right_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"first": STATE, "second": below("module.", other())})
    network = backbone()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"must hold one network that fits, .* first, second; save"):
        load_static_weights(network, path)
    assert_loaded(network, before)


def test_a_part_that_is_called_like_a_wrapper_keeps_its_name(tmp_path: Path) -> None:
    network = nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
    twin = nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
    load_static_weights(twin, saved(tmp_path, {"module": network.state_dict()}))
    assert_loaded(twin, network.state_dict())


def message_of(network: nn.Module, path: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_static_weights(network, path, **settings)
    return str(caught.value)


def tiny_ranet() -> RaNet:
    settings: dict[str, Any] = dict(scale_list=(1, 2), blocks=1, block_step=1, step=2, channels=8, growth=8)
    return RaNet(RaNetConfig(**settings, gr_factor=(2, 1), bn_factor=(2, 1)))


def test_advice_is_given_where_it_is_right(tmp_path: Path) -> None:
    def advice(mine: nn.Module, theirs: nn.Module) -> str:
        text = message_of(mine, saved(tmp_path, {"net": theirs.state_dict()}))
        assert type(mine).__name__ in text
        return text.rpartition("; ")[2]

    assert advice(backbone(), backbone(shortcut="B")) == "check model.shortcut"
    assert advice(backbone(shortcut="B"), backbone()) == "check model.shortcut"
    assert advice(backbone(se_ratio=4), backbone()) == "check model.se_ratio"
    assert advice(backbone(), backbone(skip="own")) == "check model.skip"
    assert "set model.init_head to new" in advice(backbone(num_classes=3), backbone())
    assert advice(backbone("cifar_resnet14"), backbone("cifar_resnet20")) == (
        "check model.name and the settings beside it"
    )
    for network in (tiny_ranet(), timm.create_model("test_vit", num_classes=10), nn.Linear(2, 2)):
        text = advice(backbone(), network)
        assert text.startswith("it is a file of another network (") and text.endswith("), check model.name")
        assert not any(word in text for word in ("shortcut", "se_ratio", "classes", "init_head"))
    ranet = advice(tiny_ranet(), backbone())
    assert "another network" in ranet and "shortcut" not in ranet


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_damaged_torch_files_have_a_sentence_wherever_the_damage_is(kind: str, tmp_path: Path) -> None:
    network, path = nn.Linear(4, 4), tmp_path / "w.pth"
    content = {"model": network.state_dict(), "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for turn in range(300):
        damaged = bytearray(whole[: draw.randrange(1, len(whole)) if turn % 3 else len(whole)])
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            load_static_weights(network, path)
        except CheckpointError:
            refused += 1
    assert refused > 200


def test_arguments_of_a_script_beside_the_tensors_do_no_harm(tmp_path: Path) -> None:
    network = backbone()
    load_static_weights(network, saved(tmp_path, {"model": STATE, "args": Namespace(lr=0.1, data=["a"])}))
    assert_loaded(network, STATE)


def test_names_of_released_codes_are_understood(tmp_path: Path) -> None:
    """BlockDrop's blocks and shortcuts by stage; `shortcut` and `linear` as in ConvNet-AIG and CoDiNet."""
    for theirs in (backbone(shortcut="B"), backbone("resnet10", num_classes=10)):
        state = theirs.state_dict()
        flat, others = {}, {}
        for name, tensor in state.items():
            stage, block, rest = re.fullmatch(r"(?:layer(\d+)\.(\d+)\.)?(.*)", name).groups()  # type: ignore[union-attr]
            others[name.replace("downsample", "shortcut").replace("fc.", "linear.")] = tensor
            if stage is None:
                flat[name] = tensor
            elif rest.startswith("downsample."):
                flat[f"ds.{int(stage) - 1}.{rest.removeprefix('downsample.')}"] = tensor
            else:
                flat[f"blocks.{int(stage) - 1}.{block}.{rest}"] = tensor
        for content in ({"resnet": flat, "agent": AGENT}, {"state_dict": below("module.", others)}):
            mine = backbone(shortcut="B") if "layer4.0.bn1.weight" not in state else backbone("resnet10")
            load_static_weights(mine, saved(tmp_path, content))
            assert_loaded(mine, state)


def test_a_file_without_tensors_or_with_a_single_one_has_its_sentence(tmp_path: Path) -> None:
    for content in ({"epoch": 3, "args": {"lr": 0.1}}, [], 3.0):
        assert "hold no tensors by name" in message_of(backbone(), saved(tmp_path, content))
    assert "must be a file, got a folder; of a run take best.safetensors" in message_of(backbone(), tmp_path)
    assert "another network (0 of" in message_of(backbone(), saved(tmp_path, {"x": torch.zeros(1)}))


@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "resnet10", "cifar_preact_resnet8", "timm/test_convnext", "timm/test_vit"]
)
def test_a_new_classifier_leaves_all_else_as_in_the_file(name: str, tmp_path: Path) -> None:
    theirs = backbone(name).origin.state_dict()
    path = saved(tmp_path, {"state_dict": below("module.", theirs)})
    mine = backbone(name, num_classes=3)
    assert "set model.init_head to new" in message_of(mine, path)
    fresh = {key: mine.origin.state_dict()[key].clone() for key in mine.head_names}
    assert load_static_weights(mine, path, new_head=True) == [
        f"the classifier starts anew, with 3 classes; all else is that of {path}"
    ]
    assert 0 < len(fresh) < len(theirs) and {len(value) for value in fresh.values()} == {3}
    assert_loaded(mine.origin, theirs | fresh)
    # Asked for it starts anew with the same classes too.
    same = backbone(name)
    fresh = {key: same.origin.state_dict()[key].clone() for key in same.head_names}
    load_static_weights(same, path, new_head=True)
    assert_loaded(same.origin, theirs | fresh)


def test_a_new_classifier_needs_none_in_the_file_and_minds_no_other(tmp_path: Path) -> None:
    trunk = {key: value for key, value in STATE.items() if not key.startswith("fc.")}
    projector = {"projector.0.weight": torch.zeros(4, 64), "fc.0.weight": torch.zeros(4, 64)}
    for content in (trunk, below("encoder_q.", trunk), below("encoder.", trunk | projector)):
        network = backbone(num_classes=3)
        load_static_weights(network, saved(tmp_path, content), new_head=True)
        assert torch.equal(network.state_dict()["conv1.weight"], STATE["conv1.weight"])
    assert "lacks fc.bias" in message_of(backbone(), saved(tmp_path, trunk))
    assert "check model.name" in message_of(backbone("cifar_resnet14"), saved(tmp_path, trunk), new_head=True)


def test_init_head_goes_with_init() -> None:
    with pytest.raises(RecipeError, match="init_head has no effect without init, got 'new'"):
        model_config("cifar_resnet8", init_head="new")
    with pytest.raises(RecipeError, match="init_head has no effect on 'ranet'"):
        model_config("ranet", init_head="new")
