"""What every dynamic network is, whether it skips units, leaves at exits, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sidestep.errors import ExecutionError, RecipeError
from sidestep.execution.execution import Execution, masked
from sidestep.layers.first_convolution import first_in_channels
from sidestep.layers.unit import Unit
from sidestep.networks.forward import Forward, LeavingForward
from sidestep.networks.walk import ForwardPass, Stop, Straight, walk
from sidestep.routing.dial import DialledRouter, Frontier, without_dial
from sidestep.routing.exit_rule import ExitRule
from sidestep.routing.router import Router
from sidestep.routing.samplers import Sampler, argmax
from sidestep.types import RoutedOutput


class DynamicNetwork(nn.Module):
    """A network that is trained, priced, evaluated, exported and run by the same code as all others.

    Subclasses define `stem` and `stops`, the way through the network (`networks.walk`), and what else
    differs.

    Attributes:
        router: who decides about its units, or None.
        exit_rule: where images leave at early exits when a call does not say so, as `sidestep.load` finds it
            in a calibrated run; None lets all leave at the last exit.
        frontier: budgets that its gates can be set to, as `sidestep.load` finds them in a run whose curve was
            drawn, or None.
    """

    # Without a value: one on the class would hide the module of an instance.
    router: Router | None
    exit_rule: ExitRule | None = None
    frontier: Frontier | None = None

    def stem(self, images: Tensor) -> Any:
        """Return the features in front of the first stop, given (B, 3, H, W) images."""
        raise NotImplementedError

    def stops(self) -> Iterator[Stop]:
        """Yield units, segments and exits in order; the last stop is an exit."""
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that phases train or freeze, by name: "blocks", "routers", "exits"."""
        raise NotImplementedError

    @property
    def units(self) -> Sequence[Unit]:
        """Return the L places of choice; none in a network of exits alone."""
        return ()

    @property
    def image_channels(self) -> int:
        """Return the number of channels of the images."""
        return first_in_channels(self)

    @property
    def num_options(self) -> int:
        """Return the number K of options of every unit."""
        return 2

    @property
    def units_before(self) -> Sequence[int]:
        """Return the number of units in front of every exit, the head included."""
        raise NotImplementedError

    @property
    def num_exits(self) -> int:
        """Return the number E of exits, the head included: 1 without early exits."""
        return len(self.units_before)

    @property
    def has_early_exits(self) -> bool:
        """Return whether something classifies before the head."""
        return self.num_exits > 1

    @property
    def lets_leave(self) -> bool:
        """Return whether images can leave before the head: exits may be there for gates alone."""
        return self.has_early_exits and not (self.router is not None and self.router.keeps_images)

    @property
    def tokens(self) -> bool:
        """Return whether features are (B, N, C) tokens instead of (B, C, H, W) maps."""
        return False

    @property
    def static(self) -> nn.Module:
        """Return its static rival: (B, 3, H, W) images to (B, C) logits with nothing left out."""
        return _Static(self)

    @property
    def shares_nothing(self) -> bool:
        """Return whether ways to different exits have nothing in common: the last one is the static rival."""
        return False

    def answer(self, index: int, logits: Tensor, said: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the logits with which images leave at an exit, and what later exits have to know of it.

        Args:
            index: of the exit.
            logits: (B, C) that the exit computes.
            said: what the exit before has left to know; None in front of the first.
        """
        return logits, None

    @property
    def chooses_options(self) -> bool:
        """Return whether its router weighs the options of units, so that an execution runs them."""
        return self.router is not None

    @property
    def runs_units(self) -> bool:
        """Return whether an execution runs its units, decided about or not."""
        return self.chooses_options

    @property
    def shape_of_choices(self) -> tuple[int, int]:
        """Return the number L of units and the number K of options of each.

        Raises:
            RecipeError: for a network without units.
        """
        if not self.units:
            raise RecipeError("paths other than routed need a network with units, got one of exits alone")
        return len(self.units), self.num_options

    def forward(
        self,
        images: Tensor,
        *,
        sampler: Sampler = argmax,
        router: Router | None = None,
        execution: Execution = masked,
        rule: ExitRule | None = None,
        budget: float | None = None,
    ) -> RoutedOutput:
        """Return the class scores of (B, 3, H, W) images and what was executed to get them.

        Args:
            images: normalised pixels.
            sampler: how logits become weights; hard and without noise by default.
            router: asked instead of the network's own router (uniform sampling, fixed paths).
            execution: how the network is run.
            rule: where images leave at early exits; None is the network's own `exit_rule`, which a network
                in training mode does not have a use for. Without one all leave at the last exit.
            budget: largest mean MACs per image as a fraction of the full network's, of a network with a
                `frontier`: its gates have the biases of that budget in this call.

        Raises:
            ExecutionError: for a rule for other exits, for a cascade in training mode, without early exits
                or without a rule, or for a budget that was not kept.
        """
        if budget is not None:
            router = self._at(budget, router)
        if rule is None and not self.training:
            rule = self.exit_rule
        if rule is not None and self.has_early_exits and not self.lets_leave:
            raise ExecutionError(
                "an exit rule must have exits at which images leave, got a network whose exits are there for "
                "its gates alone; leave it out"
            )
        if rule is not None and rule.num_exits != self.num_exits:
            raise ExecutionError(
                f"an exit rule must have {self.num_exits - 1} thresholds for {self.num_exits} exits, got "
                f"{rule.num_exits - 1}"
            )
        forward = self.visitor(router if router is not None else self.router, sampler, execution, rule)
        walk(self, images, forward)
        return forward.output()

    def _at(self, budget: float, router: Router | None) -> Router:
        """Return the router whose gates have the biases of a budget; another router has no budgets."""
        plain = without_dial(self.router)
        if self.frontier is None or plain is None or router is not None:
            raise ExecutionError(
                "a budget in a call needs gates whose budgets `sidestep curve` has kept, and no other "
                f"router, got {budget} for a {type(self).__name__} without; load its run after that"
            )
        dialled = DialledRouter(plain, self.frontier.at(budget).biases, self.num_options)
        return dialled.to(next(self.parameters()).device).train(self.training)

    def visitor(
        self, router: Router | None, sampler: Sampler, execution: Execution, rule: ExitRule | None
    ) -> ForwardPass:
        """Return the visitor of a forward pass; arguments as those of `forward`, with the router to ask."""
        if not execution.leaves_early:
            return Forward(self, router, sampler, execution, rule)
        if not self.lets_leave:
            raise ExecutionError(
                f"{execution.name} execution needs early exits at which images leave, got a network without; "
                "use gathered"
            )
        if self.training or rule is None:
            raise ExecutionError(
                f"{execution.name} execution needs evaluation mode and an exit rule, got "
                f"{'training mode' if self.training else 'no rule'}; "
                "call network.eval(), and calibrate the run or set network.exit_rule; or run masked"
            )
        return LeavingForward(self, router, sampler, execution, rule)


class _Static(nn.Module):
    """The way to the last exit, where no router and no other exit is asked."""

    def __init__(self, network: DynamicNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        straight = Straight(self.network.num_exits - 1)
        walk(self.network, images, straight)
        return straight.logits
