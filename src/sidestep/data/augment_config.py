"""What training does to images beyond crops and mirrors."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Settings of augmentation; all of it is off by default.

    Args:
        rand_augment: number of operations of RandAugment (Cubuk et al. 2020) that every image goes through,
            torchvision's.
        magnitude: of these operations, of 30.
        erase: probability that a rectangle of an image becomes the mean colour (Zhong et al. 2020).
        erase_area: smallest and largest share of the image that it covers.
        mixup: alpha of the Beta distribution from which shares of two images are drawn (Zhang et al. 2018).
        cutmix: alpha of the same for a rectangle of one image in another (Yun et al. 2019).
        mix_rate: share of the batches that are mixed, half of them by each where both are on.
    """

    rand_augment: int = 0
    magnitude: int = 9
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_rate: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "erase_area", tuple(self.erase_area))
        if self.rand_augment < 0:
            raise RecipeError(f"rand_augment must be at least 0, got {self.rand_augment}; 2 is usual")
        if not 0 <= self.magnitude <= 30:
            raise RecipeError(f"magnitude must be in 0 to 30, got {self.magnitude}; 9 is usual")
        if not 0 <= self.erase <= 1:
            raise RecipeError(f"erase must be in [0, 1], got {self.erase}; 0.25 is usual")
        low, high = self.erase_area
        if not 0 < low <= high < 1:
            raise RecipeError(f"erase_area must be two rising shares in (0, 1), got {self.erase_area}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} must be at least 0, got {getattr(self, name)}; 0 switches it off")
        if not 0 < self.mix_rate <= 1:
            raise RecipeError(f"mix_rate must be in (0, 1], got {self.mix_rate}; 1 mixes every batch")
        self._check_effects()

    @property
    def mixes(self) -> bool:
        """Return whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def _check_effects(self) -> None:
        for name, default, on, what in (
            ("magnitude", 9, self.rand_augment > 0, "rand_augment 0"),
            ("erase_area", (0.02, 0.33), self.erase > 0, "erase 0"),
            ("mix_rate", 1.0, self.mixes, "mixup and cutmix 0"),
        ):
            if not on and (value := getattr(self, name)) != default:
                raise RecipeError(f"{name} has no effect with {what}, got {value}; drop it")
