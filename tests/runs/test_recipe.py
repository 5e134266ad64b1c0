"""Recipes: values, overrides, and every error at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidestep.errors import RecipeError
from sidestep.methods import METHODS
from sidestep.networks.families import build_ranet
from sidestep.networks.models import MODELS, Model, register_model
from sidestep.runs.recipe import from_dict, load_recipe
from sidestep.runs.upgrade import VERSION
from tests.paths import RECIPES

ALL = sorted(RECIPES.glob("*.yaml"))
MINIMAL = {
    "name": "tiny",
    "method": {"name": "rdi_net"},
    "training": {"phases": [{"name": "joint", "epochs": 1}]},
}


def test_a_minimal_recipe_has_the_papers_defaults() -> None:
    recipe = from_dict(MINIMAL)
    assert recipe.method == "rdi_net"
    assert (recipe.settings.target, recipe.settings.gate_mode) == (0.5, "soft")
    assert (recipe.settings.router.dim, recipe.settings.router.gamma, recipe.settings.router.reach) == (
        256,
        0.5,
        2,
    )
    assert (recipe.settings.srm.alpha, recipe.settings.srm.margin) == (0.2, 0.5)


def test_a_recipe_survives_its_own_dump() -> None:
    recipe = from_dict(MINIMAL)
    assert from_dict(yaml.safe_load(yaml.safe_dump(recipe.as_dict()))) == recipe


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_in_its_header_what_it_is(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.method in METHODS
    assert recipe.name == path.stem
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", ["rdi_net_resnet110_cifar10", "rdi_net_resnet110_cifar100"])
def test_the_paper_recipes_hold_the_papers_numbers(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    usw, joint = recipe.training.phases
    assert (usw.epochs, usw.train, usw.paths, usw.lr) == (30, "blocks", "uniform", 0.1)
    assert (joint.epochs, joint.train, joint.lr, joint.milestones) == (320, "all", 0.1, [250, 300])
    assert recipe.training.batch_size == 256
    assert (recipe.training.optimizer.momentum, recipe.training.optimizer.weight_decay) == (0.9, 1e-4)
    assert recipe.settings.router.gamma == 0.5
    assert (recipe.settings.srm.margin, recipe.settings.srm.alpha) == (0.5, 0.2)
    assert recipe.model.name == "cifar_resnet110"


def write(folder: Path, values: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_overrides_reach_nested_settings_and_lists(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        path,
        ["--method.router.gamma=auto", "--method.target", "0.4", "--training.phases.0.epochs", "3"],
    )
    assert recipe.settings.router.gamma == "auto"
    assert recipe.settings.target == 0.4
    assert recipe.training.phases[0].epochs == 3


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["--training.optimizer.weight_decay=1e-3"])
    assert recipe.training.optimizer.weight_decay == 1e-3


def test_all_errors_come_at_once_with_the_nearest_names() -> None:
    values = {
        "method": {"name": "rdi_net", "tagret": 0.4, "gate_mode": "harrd", "router": {"gamma": 2}},
        "modle": {},
        "training": {"phases": [{"name": "x", "epochs": -1}], "batch_size": "many"},
    }
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    text = str(caught.value)
    assert "method.tagret is no setting of method rdi_net; did you mean target?" in text
    assert "gate_mode must be a value out of soft, hard, share, got 'harrd'; did you mean hard?" in text
    assert "method.router.gamma must be in [0, 1] or 'auto', got 2" in text
    assert "modle is no setting of a recipe; did you mean model?" in text
    assert "training.phases.0.epochs must be at least 0, got -1" in text
    assert "training.batch_size must be a whole number, got 'many'" in text
    assert "6 errors" in text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"shortcut": "pool_ends"}, "got 'pool_ends'; did you mean pool_end?"),
        ({"se_ratio": "many"}, "model.se_ratio must be a whole number or null, got 'many'"),
        (
            {"se_ratio": 20},
            "model.se_ratio must be from 1 to 16, the channels of the narrowest block",
        ),
        ({"name": "resnet51"}, "model.name must be one of cifar_resnet<6n+2>, cifar_preact_resnet<6n+2>, "),
        ({"name": "resnet51"}, "got 'resnet51'; did you mean resnet50?"),
        ({"name": 32}, "model.name must be one of cifar_resnet<6n+2>, "),
    ],
)
def test_a_network_that_cannot_be_built_is_one_error(model: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s)has one error.*{re.escape(message)}"):
        from_dict({**MINIMAL, "model": model})


@pytest.mark.parametrize(
    ("name", "key", "value", "hint"),
    [
        ("resnet50", "shortcut", "A", "; known: "),
        ("resnet50", "options", 3, "; known: "),
        ("resnet50", "skp", "own", "; did you mean skip?"),
        ("cifar_resnet20", "units", "sublayers", ""),
        ("cifar_preact_resnet20", "mix", "branch", "; known: exits, init, init_head, inner_leak, name"),
        ("preact_resnet50", "se_ratio", 16, "; known: exits, init, init_head, name"),
        ("timm/test_vit", "shortcut", "B", "; known: exits, init, init_head, name, pretrained, units"),
        ("resnet18", "pretrained", True, "; known: "),
        ("ranet", "exits", {"at": ["layer1"]}, "; known: "),
        ("msdnet", "init", "weights.safetensors", "; known: "),
    ],
)
def test_a_model_has_keys_of_its_own(name: str, key: str, value: object, hint: str) -> None:
    message = f"(?s)has one error.*{re.escape(f'model.{key} is no setting of model {name}{hint}')}"
    with pytest.raises(RecipeError, match=message):
        from_dict({"version": VERSION, **MINIMAL, "model": {"name": name, key: value}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"root": "x"}, "data.root is no setting of source digits; known: "),
        ({"source": "photos", "root": "x"}, "data.root is no setting of source photos; known: "),
        ({"source": "photos", "flop": True}, "data.flop is no setting of source photos; did you mean flip?"),
        ({"source": "torch/cifar10"}, "data.root is required, got nothing; set it to a text"),
        ({"source": "torch/mnist", "root": "x"}, "data.source must be one of torch/cifar10, torch/cifar100 "),
        ({"source": "hfds/a/b", "root": 3}, "data.root must be a text or null, got 3; YAML reads a number"),
        ({"source": None}, "data.source must be one of digits, torch/<cifar10 or cifar100>, hfds/<"),
    ],
)
def test_a_source_has_keys_of_its_own(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s)has one error.*{re.escape(message)}"):
        from_dict({**MINIMAL, "data": data})


@pytest.mark.parametrize("source", ["digits", "photos", "hfds/a/b", "torch/cifar100"])
def test_the_settings_of_sources_survive_a_dump(source: str) -> None:
    own = {} if source in ("digits", "photos") else {"root": "cache"}
    recipe = from_dict({**MINIMAL, "data": {"source": source, "limit": 9, **own}})
    dump = yaml.safe_load(yaml.safe_dump(recipe.as_dict()))
    assert from_dict(dump) == recipe
    assert {"source": source, "limit": 9, **own}.items() <= dump["data"].items()
    assert ("root" in dump["data"]) == bool(own)


def test_settings_cannot_be_called_like_those_that_all_share() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Settings:
        exits: int = 3

    model = Model(name="mine", summary="", settings=Settings, build=build_ranet)
    register_model(model)
    try:
        with pytest.raises(RecipeError, match="settings of model mine must leave the key exits to all"):
            from_dict({**MINIMAL, "model": {"name": "mine"}})
    finally:
        MODELS.remove("mine")


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("rdi_net", {"shortcut": "pool_both", "se_ratio": 16}),
        ("rdi_net", {"name": "resnet50", "mix": "branch"}),
        ("act", {"name": "cifar_preact_resnet8", "init": "weights.safetensors"}),
        ("rdi_net", {"name": "timm/test_vit", "units": "sublayers"}),
        ("ranet", {"name": "ranet", "scale_list": [1, 2], "gr_factor": [2, 1], "bn_factor": [2, 1]}),
        ("msdnet", {"name": "msdnet", "bn_factor": None}),
    ],
)
def test_the_settings_of_models_survive_a_dump(method: str, model: dict[str, Any]) -> None:
    recipe = from_dict({**MINIMAL, "method": {"name": method}, "model": model})
    dump = yaml.safe_load(yaml.safe_dump(recipe.as_dict()))
    assert from_dict(dump) == recipe
    assert model.items() <= dump["model"].items()


def test_a_recipe_of_a_later_release_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=f"version must be {VERSION}, got {VERSION + 1}; use the release that wrote it"
    ):
        from_dict({**MINIMAL, "version": VERSION + 1})


def test_an_unknown_method_names_those_that_exist() -> None:
    with pytest.raises(
        RecipeError, match=r"must be one of rdi_net, .*, static, got 'rdinet'; did you mean rdi_net"
    ):
        from_dict({**MINIMAL, "method": {"name": "rdinet"}})


def test_a_missing_required_setting_is_named() -> None:
    with pytest.raises(RecipeError, match=r"method\.num_units is required"):
        from_dict({**MINIMAL, "method": {"name": "codinet"}})


def test_a_ramp_of_something_that_is_no_number_is_an_error() -> None:
    phase = {"name": "x", "epochs": 1, "ramps": {"gate_mode": {"start": 0, "end": 1}}}
    with pytest.raises(RecipeError, match=r"training\.phases\.0\.ramps\.gate_mode is no setting"):
        from_dict({**MINIMAL, "training": {"phases": [phase]}})


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"schedule": "multistep"}, "milestones belong to schedule 'multistep'"),
        ({"milestones": [1]}, "milestones belong to schedule 'multistep'"),
        ({"paths": "uniform"}, "asks no router, so train must be 'blocks'"),
        ({"lr": 0}, "lr must be above 0"),
        ({"warmup_epochs": 3}, "warmup_epochs must be between 0 and epochs"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(phase: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_dict({**MINIMAL, "training": {"phases": [{"name": "x", "epochs": 2, **phase}]}})


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml must be"):
        load_recipe(path)


def test_a_missing_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be a YAML file, or the name of one that comes"):
        load_recipe(tmp_path / "none.yaml")


def test_overrides_that_name_no_place_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    with pytest.raises(RecipeError, match="names no place in the recipe"):
        load_recipe(path, ["--training.phases.7.epochs=1"])
    with pytest.raises(RecipeError, match="must be --key value"):
        load_recipe(path, ["--method.target"])


def test_a_null_where_something_is_required_is_one_of_the_errors() -> None:
    values = {
        "name": None,
        "method": {"name": "rdi_net", "target": None, "router": None},
        "model": {"mix": None, "exits": {"at": None}},
        "data": {"mean": None, "flip": None, "limit": None},
        "training": {
            "phases": [{"name": "x", "epochs": 1, "milestones": None, "settings": None, "ramps": {"y": None}}]
        },
    }
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    assert str(caught.value).splitlines() == [
        "recipe has 10 errors:",
        "  - name must be a text, got None",
        "  - method.target must be a number, got None",
        "  - method.router must be a mapping, got None",
        "  - model.mix must be a value out of output, branch, got None",
        "  - model.exits.at must be a list of texts, got None",
        "  - data.mean must be a list of numbers, got None",
        "  - data.flip must be a true or false or value out of alternating, got None",
        "  - training.phases.0.milestones must be a list of whole numbers, got None",
        "  - training.phases.0.settings must be a mapping, got None",
        "  - training.phases.0.ramps.y must be a mapping, got None",
    ]
    with pytest.raises(RecipeError, match=r"training\.phases must be a list of mappings, got None"):
        from_dict({**MINIMAL, "training": {"phases": None}})


def test_a_null_is_taken_where_there_is_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["--data.limit=null", "--model.se_ratio", "null"])
    assert (recipe.data.limit, recipe.model.settings.se_ratio) == (None, None)


def test_a_text_that_yaml_reads_as_a_number_wants_quotes_in_a_file(tmp_path: Path) -> None:
    phases = [{"name": True, "epochs": 1}]
    changes = {"method": {"name": "fixed_path", "path": 1010010}, "training": {"phases": phases}}
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, MINIMAL | changes))
    text = str(caught.value)
    assert "method.path must be a text or null, got 1010010; YAML reads a number there: put it in" in text
    assert "training.phases.0.name must be a text, got True; YAML reads true or false there" in text


def test_a_text_on_the_command_line_is_taken_as_it_was_typed(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    for text in ("1010010", "set #1", "@x", "*.png", "%s", "a: b: c", "[old] set", "yes", "1e3", " x "):
        recipe = load_recipe(path, ["--name", text, f"--training.phases.0.name={text}"])
        assert (recipe.name, recipe.training.phases[0].name) == (text, text)
    assert load_recipe(path, ["--model.init", "null"]).model.init is None
    path = write(tmp_path, MINIMAL | {"method": {"name": "fixed_path"}})
    assert load_recipe(path, ["--method.path", "1010010"]).settings.path == "1010010"


@pytest.mark.parametrize(
    ("override", "value"),
    [("1e-3", 1e-3), (".5", 0.5), ("1", 1.0), ("1_0", 10.0)],
)
def test_numbers_on_the_command_line_are_read_as_numbers(override: str, value: float, tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_recipe(path, ["--training.phases.0.lr", override]).training.phases[0].lr == value


def test_groups_and_lists_on_the_command_line_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    overrides = ["--data.mean=[.1, .2, .3]", "--model.exits={at: [layer1]}", "--model={name: cifar_resnet20}"]
    assert load_recipe(path, overrides[:1]).data.mean == (0.1, 0.2, 0.3)
    assert load_recipe(path, overrides[1:2]).model.exits.at == ["layer1"]
    assert load_recipe(path, overrides[2:]).model.name == "cifar_resnet20"


def test_an_override_reaches_into_a_group_that_another_has_named(tmp_path: Path) -> None:
    group = "--method={name: rdi_net, target: 0.6, router: {dim: 8}}"
    recipe = load_recipe(
        write(tmp_path, MINIMAL), [group, "--method.target", "0.5", "--method.router.gamma=0.25"]
    )
    method = recipe.as_dict()["method"]
    assert (method["target"], method["router"]["dim"], method["router"]["gamma"]) == (0.5, 8, 0.25)
    with pytest.raises(RecipeError, match=r"--method\.target names no place in the recipe"):
        load_recipe(write(tmp_path, MINIMAL), ["--method={name: rdi_net", "--method.target", "0.5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.phases.0.lr=.nan", "training.phases.0.lr must be a finite number, got"),
        ("--training.phases.0.lr=inf", "training.phases.0.lr must be a finite number, got"),
        ("--data.std=[.inf, 1, 1]", "data.std must be a finite list of numbers"),
        ("--training.phases.-1.lr=0.1", "--training.phases.-1.lr names no place in the recipe"),
        ("--data.std=[1, 1", "data.std must be a list of numbers, got '[1, 1'"),
        ("--method=:", "method must be a mapping, got ':'"),
        (
            "--data.flip=perhaps",
            "data.flip must be a true or false or value out of alternating, got 'perhaps'",
        ),
        ("--training.seed=-1", "training.seed must be in 0 to"),
        ("--training.seed=10000000000000000000000", "training.seed must be in 0 to"),
    ],
)
def test_what_the_command_line_got_wrong_is_not_blamed_on_the_file(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, MINIMAL), [override])
    assert str(caught.value).startswith("the command line has one error:\n")
    assert message in str(caught.value)


def test_errors_of_a_file_and_of_the_command_line_are_said_together(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"nmae": "x"})
    with pytest.raises(RecipeError, match=r"recipe\.yaml with the settings of the command line has 2 errors"):
        load_recipe(path, ["--method.tagret=1"])


def test_a_recipe_that_comes_with_the_package_is_found_by_its_name() -> None:
    assert load_recipe("rdi_net_resnet20_cifar10_short").name == "rdi_net_resnet20_cifar10_short"
    with pytest.raises(RecipeError, match=r"did you mean rdi_net_resnet20_cifar10_short\?"):
        load_recipe("rdi_net_resnet20_cifar10_shrot")
