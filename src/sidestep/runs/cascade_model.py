"""The model `cascade`: members as a recipe names them, built and filled with the weights that they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sidestep.backbones.static_weights import load_static_weights, load_weights
from sidestep.errors import CheckpointError, RecipeError
from sidestep.methods import METHODS
from sidestep.networks.cascade_network import CascadeNetwork, Combine, MemberInput, MemberView, shared_input
from sidestep.networks.models import MODELS, Model, ModelConfig, build_backbone, build_model
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.whole_network import WholeNetwork
from sidestep.runs.sections import METHOD, MODEL
from sidestep.training.checkpoint import is_checkpoint, load_checkpoint

_TIMM = "timm/"
_EXITS = "exits."


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSettings:
    """A network of a cascade.

    Args:
        name: how tables call it.
        method: its method and that method's settings, as a recipe's `method:` has them.
        model: its model, as a recipe's `model:` has it.
        weights: file of its weights, a checkpoint of a run or static ones; None downloads those of timm.
        input: the pixels that it was trained on.
        whole: take a network of timm as it is, without units, as every network of timm can be.
    """

    name: str
    model: dict[str, Any]
    method: dict[str, Any] = field(default_factory=lambda: {"name": "static"})
    weights: str | None = None
    input: MemberInput
    whole: bool = False

    def __post_init__(self) -> None:
        model, method = str(self.model.get("name")), self.method.get("name")
        if self.whole and (not model.startswith(_TIMM) or method != "static"):
            raise RecipeError(
                f"whole must be false for a member that is no static network of timm, got {model!r} with "
                f"method {method!r}"
            )

    def parts(self) -> tuple[str, Any, ModelConfig]:
        """Return the name of its method, that method's settings, and its model.

        Raises:
            RecipeError: naming all errors at once.
        """
        errors: list[str] = []
        place = f"members.{self.name}"
        settings = METHOD.build(self.method, f"{place}.method", errors)
        model = MODEL.build(self.model, f"{place}.model", errors)
        if errors:
            raise RecipeError("; ".join(errors))
        return str(METHOD.name_in(self.method)), settings, model

    def build(self, num_classes: int) -> DynamicNetwork:
        """Return its network with initial weights."""
        method, settings, model = self.parts()
        channels: Any = len(self.input.mean)
        if self.whole:
            return WholeNetwork(_whole(model, num_classes, self.input, pretrained=False))
        built: Any = build_model(model, num_classes, self.input.size, channels)
        network = METHODS[method].network(built, METHODS[method].router(built, settings))
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSettings:
    """Settings of "cascade": whole networks in the order of their cost.

    Args:
        members: the networks, the cheapest first.
        combine: what an exit says: "last", its member's answer alone, or that of all members so far, by the
            mean of their log-probabilities ("log_probs") or of their probabilities ("probs").
    """

    members: list[MemberSettings]
    combine: Combine = "log_probs"

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise RecipeError(f"members must be two networks or more, got {len(self.members)}")
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise RecipeError(f"members must have different names, got {', '.join(names)}")

    @property
    def input(self) -> MemberInput:
        """Return the pixels from which all members get theirs."""
        return shared_input([member.input for member in self.members])


def _build(
    settings: CascadeSettings, name: str, num_classes: int, size: tuple[int, int] | None, *, channels: int
) -> CascadeNetwork:
    given = settings.input
    if size not in (None, given.size):
        raise RecipeError(
            f"data.image_size must be {list(given.size)} for these members, got {list(size or ())}"
        )
    members = [member.build(num_classes) for member in settings.members]
    views = [MemberView(given, member.input) for member in settings.members]
    return CascadeNetwork(members, views, settings.combine)


def _check(config: ModelConfig) -> None:
    for member in config.settings.members:
        member.parts()


def load_members(network: CascadeNetwork, members: Sequence[MemberSettings], num_classes: int) -> list[str]:
    """Fill the members of a cascade with their weights, and return sentences about what was loaded.

    Raises:
        CheckpointError: for a member whose weights are missing or do not fit.
    """
    notes: list[str] = []
    for module, member in zip(network.members, members, strict=True):
        assert isinstance(module, DynamicNetwork)
        try:
            notes += load_member(module, member, num_classes)
        except CheckpointError as error:
            raise CheckpointError(f"member {member.name}: {error}") from error
    return notes


def load_member(network: DynamicNetwork, member: MemberSettings, num_classes: int) -> list[str]:
    """Fill a member with its weights, and return sentences about what was loaded.

    Raises:
        CheckpointError: for weights that are missing or do not fit.
    """
    _, _, model = member.parts()
    if member.weights is None:
        if member.whole:
            # The head may have other classes, which timm starts anew then.
            whole = _whole(model, num_classes, member.input, pretrained=True)
            network.parts()["blocks"].load_state_dict(whole.state_dict())
            return []
        trained = build_backbone(model, num_classes, member.input.size)
        network.parts()["blocks"].load_state_dict(trained.state_dict())
        return []
    path = Path(member.weights)
    if is_checkpoint(path):
        tensors = load_checkpoint(path).section("model")
        if not network.has_early_exits:
            # A member answers at its end: early exits of its run are left out.
            tensors = {name: each for name, each in tensors.items() if not name.startswith(_EXITS)}
        load_weights(network, tensors, f"checkpoint {path}")
        return []
    return load_static_weights(network.parts()["blocks"], path)


def _whole(model: ModelConfig, num_classes: int, seen: MemberInput, *, pretrained: bool) -> nn.Module:
    # Imported where it is needed, since timm takes seconds.
    from sidestep.backbones.timm_models import build_timm_whole

    return build_timm_whole(
        model.name.removeprefix(_TIMM),
        num_classes,
        seen.size,
        in_channels=len(seen.mean),
        pretrained=pretrained,
    )


CASCADE = Model(
    name="cascade",
    summary="trained networks, of which a dearer one is asked where a cheaper one is unsure",
    settings=CascadeSettings,
    build=_build,
    any_channels=True,
    check=_check,
    dynamic=True,
)


def register_cascades() -> None:
    """Let recipes name the model, which needs recipes itself to say what its members are."""
    if CASCADE.name not in MODELS:
        MODELS.add(CASCADE)
