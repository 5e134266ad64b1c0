"""Cascades of whole networks: a cheap one answers, and a dearer one is asked where it is unsure.

A cascade is a network with exits whose ways share nothing: every member begins with the images again (Wang et
al., "Wisdom of Committees", ICLR 2022; Enomoro and Eda, 2021; Lebovitz et al., TMLR 2023). Its exits are the
ends of its members, so that thresholds, temperatures, curves and prices are those of any network with exits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidestep.data.preparation import Interpolation
from sidestep.errors import RecipeError
from sidestep.layers.unit import Unit
from sidestep.networks.network import DynamicNetwork
from sidestep.networks.walk import ExitStop, MemberStop, SegmentStop, Stop, UnitStop
from sidestep.routing.budget_router import BudgetedRouter
from sidestep.routing.router import Router, always, reads_exits

Combine = Literal["last", "log_probs", "probs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInput:
    """The pixels that a network was trained on.

    Attributes:
        size: (H, W).
        crop_share: share of the resized picture's side that the crop in its middle kept.
        interpolation: how pictures were resized.
        mean: of every channel of pixels in [0, 1], subtracted.
        std: of every channel, divided by.
    """

    size: tuple[int, int]
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise RecipeError(f"size must be at least 1, got {list(self.size)}")
        if not 0.0 < self.crop_share <= 1.0:
            raise RecipeError(f"crop_share must be in (0, 1], got {self.crop_share}")
        check_pixels(self.mean, self.std)


def check_pixels(mean: Sequence[float], std: Sequence[float]) -> None:
    """Return if images can be normalised by a mean and a deviation of every channel.

    Raises:
        RecipeError: for numbers with which they cannot.
    """
    finite = all(map(math.isfinite, (*mean, *std)))
    if len(mean) != len(std) or not finite or min(std, default=0.0) <= 0:
        raise RecipeError(
            f"mean and std must be finite numbers, std above 0, one of each for every channel, got "
            f"{list(mean)} and {list(std)}"
        )


def shared_input(inputs: Sequence[MemberInput]) -> MemberInput:
    """Return the pixels from which all members get theirs: the widest view, as fine as the finest needs it.

    Normalisation and interpolation are the last member's, which is the dearest.
    """
    crop_share = max(each.crop_share for each in inputs)
    height, width = (
        max(math.ceil(each.size[axis] * crop_share / each.crop_share) for each in inputs) for axis in (0, 1)
    )
    last = inputs[-1]
    return MemberInput(
        size=(height, width),
        crop_share=crop_share,
        interpolation=last.interpolation,
        mean=last.mean,
        std=last.std,
    )


class MemberView(nn.Module):
    """Turns the cascade's images into those that a member was trained on: crop, size, normalisation.

    Args:
        given: of the cascade's images.
        wanted: of the member's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, given: MemberInput, wanted: MemberInput) -> None:
        super().__init__()
        self.size, self.interpolation = wanted.size, wanted.interpolation
        share = wanted.crop_share / given.crop_share
        self.crop = tuple(min(side, round(share * side)) for side in given.size)
        self.crops = self.crop != given.size
        self.resizes = self.crops or self.crop != wanted.size
        # (x s0 + m0 - m1) / s1
        scale = [s0 / s1 for s0, s1 in zip(given.std, wanted.std, strict=True)]
        shift = [(m0 - m1) / s1 for m0, m1, s1 in zip(given.mean, wanted.mean, wanted.std, strict=True)]
        self.is_same = not self.resizes and max(abs(s - 1) for s in scale) + max(map(abs, shift)) < 1e-9
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.is_same:
            return images
        if self.crops:
            rows, columns = self.crop
            top, left = (images.shape[2] - rows) // 2, (images.shape[3] - columns) // 2
            images = images[:, :, top : top + rows, left : left + columns]
        if self.resizes and self.size != tuple(images.shape[2:]):
            # PyTorch resizes no bfloat16 on a CPU.
            wide = images.to(torch.promote_types(images.dtype, torch.float32))
            resized = F.interpolate(
                wide, self.size, mode=self.interpolation, antialias=True, align_corners=False
            )
            images = resized.to(images)
        return images * self.scale.to(images) + self.shift.to(images)


class CascadeNetwork(DynamicNetwork):
    """Members in the order of their cost, the end of each an exit.

    Members that skip units skip them here too. What an exit says is its member's answer alone ("last"), or
    that of all members so far: the mean of their log-probabilities, which multiplies probabilities, or of
    their probabilities.

    Args:
        members: two networks or more with the same classes; early exits that they have are not asked.
        views: what turns the cascade's images into those of each member.
        combine: what an exit says.

    Raises:
        RecipeError: for members that cannot be in a cascade.
    """

    def __init__(
        self, members: Sequence[DynamicNetwork], views: Sequence[nn.Module], combine: Combine = "log_probs"
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise RecipeError(f"members must be two networks or more, got {len(members)}")
        if combine not in get_args(Combine):
            raise RecipeError(f"combine must be one of {', '.join(get_args(Combine))}, got {combine!r}")
        _check_members(members)
        self.members, self.views = nn.ModuleList(members), nn.ModuleList(views)
        self.combine = combine
        self._units: list[Unit] = [unit for member in members for unit in member.units]
        self._units_before = tuple(accumulate(len(member.units) for member in members))
        routed = any(member.router is not None for member in members)
        self.router = CascadeRouter(members, views) if routed else None

    def stem(self, images: Tensor) -> Tensor:
        return images

    def stops(self) -> Iterator[Stop]:
        for index, (member, view) in enumerate(zip(self.members, self.views, strict=True)):
            assert isinstance(member, DynamicNetwork)
            first = self._units_before[index] - len(member.units)
            yield MemberStop(index, partial(_start, view, member))
            for stop in member.stops():
                yield from _inside(stop, index, first, last_exit=member.num_exits - 1)

    def answer(self, index: int, logits: Tensor, said: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.combine == "last":
            return logits, None
        if self.combine == "probs":
            log_probs = logits.float().log_softmax(dim=1)
            sums = log_probs if said is None else torch.logaddexp(said, log_probs)
            return sums - math.log(index + 1), sums
        # Log-probabilities are logits less a number for each image, which a softmax does not see.
        sums = logits if said is None else said + logits
        return sums / (index + 1), sums

    @property
    def units(self) -> Sequence[Unit]:
        return self._units

    @property
    def image_channels(self) -> int:
        return self._members()[-1].image_channels

    @property
    def num_options(self) -> int:
        return max(member.num_options for member in self._members())

    @property
    def units_before(self) -> Sequence[int]:
        return self._units_before

    @property
    def static(self) -> nn.Module:
        """Return the last member, which answers every image where there is no cascade."""
        return nn.Sequential(self.views[-1], self._members()[-1].static)

    def parts(self) -> dict[str, nn.Module]:
        routers = {} if self.router is None else {"routers": self.router}
        return {"blocks": self.members, **routers}

    @property
    def shares_nothing(self) -> bool:
        return True

    def _members(self) -> list[DynamicNetwork]:
        return [member for member in self.members if isinstance(member, DynamicNetwork)]


class CascadeRouter(Router):
    """Asks the router of the member that a unit belongs to; units of static members are always executed.

    Args:
        members: of the cascade.
        views: what turns the cascade's images into those of each member.
    """

    def __init__(self, members: Sequence[DynamicNetwork], views: Sequence[nn.Module]) -> None:
        super().__init__()
        # The modules are the cascade's; here they would be named twice.
        self._members, self._views = tuple(members), tuple(views)
        self.num_options = max(member.num_options for member in members)
        self._places = [
            (index, unit) for index, member in enumerate(members) for unit in range(len(member.units))
        ]

    def begin(self, images: Tensor) -> Any:
        """Return the images, the member whose router was asked last, and the state of that router."""
        return {"images": images, "member": -1, "state": None}

    def forward(self, unit: int, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        member, place = self._places[unit]
        router = self._members[member].router
        if router is None:
            return always(self.num_options - 1, self.num_options, _batch_of(features)), state
        inner = state["state"]
        if state["member"] != member:
            inner = router.begin(self._views[member](state["images"]))
        logits, inner = router(place, features, inner)
        return logits, {**state, "member": member, "state": inner}

    def take(self, state: Any, rows: Tensor) -> Any:
        taken = super().take({**state, "state": None}, rows)
        if state["state"] is None:
            return taken
        router = self._members[state["member"]].router
        assert router is not None  # whose state it is
        return {**taken, "state": router.take(state["state"], rows)}


def _start(view: nn.Module, member: DynamicNetwork, images: Tensor) -> Any:
    return member.stem(view(images))


def _inside(stop: Stop, index: int, first: int, *, last_exit: int) -> Iterator[Stop]:
    """Yield a stop of a member as one of the cascade; its early exits are none."""
    if isinstance(stop, UnitStop):
        yield UnitStop(first + stop.index, stop.unit)
    elif isinstance(stop, SegmentStop):
        yield SegmentStop(index, stop.compute)
    elif isinstance(stop, ExitStop) and stop.index == last_exit:
        yield ExitStop(index, stop.classify)


def _check_members(members: Sequence[DynamicNetwork]) -> None:
    if any(member.router is not None and not member.chooses_options for member in members):
        raise RecipeError(
            "members must choose whole units or none, got one whose stages halt (act, sact); leave it out"
        )
    if any(reads_exits(member.router) for member in members):
        raise RecipeError(
            "members must decide without their early exits, which a cascade does not ask, got one whose "
            "gates see them (sees_exits, certainty); leave it out"
        )
    if any(isinstance(member.router, BudgetedRouter) for member in members):
        raise RecipeError(
            "members must have one budget, which a cascade cannot choose for them, got a network for all "
            "budgets; leave it out"
        )
    numbers = {member.num_options for member in members if member.units}
    if len(numbers) > 1:
        raise RecipeError(
            f"members must have the same number of options per unit, got {sorted(numbers)}; set "
            "model.options to the same number in all"
        )


def _batch_of(features: Any) -> Tensor:
    assert isinstance(features, Tensor)
    return features
