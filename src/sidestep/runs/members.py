"""Members of cascades as users name them: a run folder, a model with a file of weights, or timm's weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sidestep.cost.macs import measure_cost
from sidestep.data.data_config import DataConfig
from sidestep.data.decode import PHOTO_CROP
from sidestep.data.load import Data, load_data
from sidestep.data.preparation import Preparation
from sidestep.data.split import Role, class_difference, shown_name
from sidestep.errors import CheckpointError, RecipeError
from sidestep.hub.places import is_place
from sidestep.networks.cascade_network import MemberInput
from sidestep.networks.models import MODELS
from sidestep.networks.network import DynamicNetwork
from sidestep.runs.cascade_model import MemberSettings
from sidestep.runs.published_weights import about_weights
from sidestep.runs.run_folder import open_run
from sidestep.runs.sections import DATA
from sidestep.targets.export_target import Exportable
from sidestep.types import CostModel

_TIMM = "timm/"
_PIXELS = ("mean", "std")
_CIFAR_SIDE, _PHOTO_SIDE = 32, 224
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMember:
    """A member as a user named it.

    Attributes:
        text: what the user typed.
        settings: of the member.
        class_names: in the order of its outputs, or None for weights that do not say.
    """

    text: str
    settings: MemberSettings
    class_names: tuple[str, ...] | None = None

    @property
    def is_run(self) -> bool:
        """Return whether it is a run or a package, which `open_run` opens."""
        return is_run(self.text)


def member_of(text: str, data: DataConfig, *, given: Collection[str] = ()) -> NamedMember:
    """Return the member that a text names.

    Args:
        text: a run folder, a package (`hf-hub:org/name`, `local-dir:path`), `timm/<name>` with timm's
            pretrained weights, or weights: `cifar_resnet20=weights.safetensors`, `timm/<name>=...`.
        data: what the cascade is for; its size, mean and deviation hold for members that bring none.
        given: keys of data that somebody has set, not left at their defaults. A mean and a deviation that are
            among them hold for weights of timm's networks from elsewhere as well, which may have been trained
            on other ones than timm's.

    Raises:
        RecipeError: for a text that names no network.
        CheckpointError: for weights that are missing or damaged.
    """
    if is_run(text):
        return _of_run(text)
    name, equals, file = text.partition("=")
    if not equals and not text.startswith(_TIMM):
        raise RecipeError(
            f"a member must be a run folder, a package, <model>=<weights file>, or timm/<name>, got "
            f"{text!r}; for example cifar_resnet20=weights.safetensors"
        )
    if name not in MODELS:
        raise MODELS.unknown(name)
    if equals and not Path(file).is_file():
        raise CheckpointError(f"weights {file} of member {name} must be a file, and there is none")
    model: dict[str, Any] = {"name": name} if equals else {"name": name, "pretrained": True}
    if not name.startswith(_TIMM):
        wanted = _of_weights(text, Path(file), data, given)
    elif equals:
        wanted = _of_timm_with(name, Path(file), {key: getattr(data, key) for key in _PIXELS if key in given})
    else:
        wanted = _of_timm(name)
    settings = MemberSettings(
        name=name, model=model, weights=file or None, input=wanted, whole=name.startswith(_TIMM)
    )
    return NamedMember(text=text, settings=settings)


def check_classes(member: NamedMember, class_names: Sequence[str]) -> None:
    """Refuse a member that was trained on other classes, or on the same in another order.

    Raises:
        RecipeError: naming the first difference.
    """
    if member.class_names is None:
        return
    difference = class_difference(class_names, [shown_name(name) for name in member.class_names])
    if difference is not None:
        raise RecipeError(
            f"member {member.text} must have the classes of the data, by name and order, and has others: "
            f"{difference}; leave it out, or name the data that it was trained on"
        )


def data_for(member: NamedMember, data: dict[str, Any], split: Role) -> Data:
    """Return a split prepared as a member asks, whatever the keys of `data` say of that.

    Args:
        member: the network.
        data: keys of a recipe's `data:`.
        split: "test" or "val".

    Raises:
        RecipeError: for keys that contradict each other or the member.
    """
    wanted = member.settings.input
    errors: list[str] = []
    values = {**data, "mean": list(wanted.mean), "std": list(wanted.std), "channels": len(wanted.mean)}
    config = DATA.build(values, "data", errors)
    if errors:
        raise RecipeError("; ".join(errors))
    preparation = Preparation(
        size=wanted.size,
        crop_share=wanted.crop_share,
        interpolation=wanted.interpolation,
        channels=config.channels,
    )
    return load_data(config, preparation=preparation, splits=[split])


def exportable_member(
    member: NamedMember, network: DynamicNetwork, cost: CostModel, class_names: Sequence[str]
) -> Exportable:
    """Return a member's network with what a runtime has to know to time it."""
    seen = member.settings.input
    return Exportable(
        network=network,
        cost=cost,
        rule=None,
        input_size=seen.size,
        preparation=None,
        mean=seen.mean,
        std=seen.std,
        per_image_standardization=False,
        class_names=tuple(class_names),
        about={},
    )


def macs_of(member: MemberSettings, num_classes: int) -> float:
    """Return the MACs of a member for one of its own images, everything executed."""
    return measure_cost(member.build(num_classes), member.input.size).full


def distinct(members: list[MemberSettings]) -> list[MemberSettings]:
    """Return members with names that differ: those that are taken get a number."""
    own = {member.name for member in members}
    taken: set[str] = set()
    renamed = []
    for member in members:
        name, number = member.name, 2
        while name in taken or (number > 2 and name in own):
            name, number = f"{member.name}-{number}", number + 1
        taken.add(name)
        renamed.append(replace(member, name=name))
    return renamed


def is_run(text: str) -> bool:
    """Return whether a text names a run or a package, which `open_run` opens."""
    return is_place(text) or Path(text).is_dir()


def _of_run(run: str) -> NamedMember:
    opened = open_run(run, "best")
    values, data = opened.recipe.as_dict(), opened.recipe.data
    if data.per_image_standardization:
        raise RecipeError(
            f"member {run} standardises every image by its own pixels, which a cascade cannot do for one "
            "member; leave it out"
        )
    # Weights are those of the checkpoint.
    model = {key: value for key, value in values["model"].items() if key not in ("init", "pretrained")}
    known = opened.preparation
    settings = MemberSettings(
        name=opened.folder.name,
        method=values["method"],
        model=model,
        weights=str(opened.path),
        input=MemberInput(
            size=opened.input_size,
            crop_share=1.0 if known is None else known.crop_share,
            interpolation="bilinear" if known is None else known.interpolation,
            mean=tuple(data.mean),
            std=tuple(data.std),
        ),
    )
    return NamedMember(text=run, settings=settings, class_names=opened.class_names)


def _of_timm(name: str) -> MemberInput:
    """Return the pixels that timm's weights were trained on, as timm itself says."""
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix(_TIMM))
    if config is None:
        raise RecipeError(f"member {name} must have pixels that timm knows, and it knows none; leave it out")
    _, height, width = config.input_size
    return MemberInput(
        size=(height, width),
        crop_share=config.crop_pct,
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def _of_timm_with(name: str, file: Path, given: dict[str, Any]) -> MemberInput:
    """Return the pixels of other weights of a network of timm: what their file says, the command, or timm."""
    timms = _of_timm(name)
    said = {"mean": timms.mean, "std": timms.std, **given, **_about(file)}
    return replace(timms, mean=tuple(said["mean"]), std=tuple(said["std"]))


def _about(file: Path) -> dict[str, Any]:
    """Return what a file of static weights says about the data that they were trained on."""
    return about_weights(file).get("data", {}) if file.suffix == ".safetensors" else {}


def _of_weights(text: str, file: Path, data: DataConfig, given: Collection[str]) -> MemberInput:
    """Return the pixels of static weights: what their file says, and else what the command does."""
    about = _about(file)
    unsaid = [key for key in _PIXELS if key not in about and key not in given]
    if unsaid:
        _log.warning(
            "member %s does not say the %s of the pixels that it was trained on; the default is taken (%s), "
            "and another needs %s",
            text,
            " and ".join(unsaid),
            ", ".join(f"{key} {list(getattr(data, key))}" for key in unsaid),
            " ".join(f"--data.{key}" for key in unsaid),
        )
    photos = not text.startswith("cifar_")
    side = _PHOTO_SIDE if photos else _CIFAR_SIDE
    return MemberInput(
        size=data.size or (side, side),
        crop_share=data.crop_share or (PHOTO_CROP if photos else 1.0),
        interpolation=data.interpolation,
        mean=tuple(about.get("mean", data.mean)),
        std=tuple(about.get("std", data.std)),
    )
