"""MSDNet (ICLR 2018) and RANet (CVPR 2020): easy images leave early, at an exit that is certain enough.

Nothing is discrete in training: the loss is the sum of the cross-entropies of all exits (`training.exits`
weighs them otherwise, and lets the last exit teach the others). What a method is here is its network:
the model `msdnet` keeps several scales at once, `ranet` sends an image through sub-networks of rising
resolution. Where images leave is solved afterwards, on the validation split, by `sidestep calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.methods.method import Method, as_built, no_router


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitConfig:
    """RANet and MSDNet have no settings besides those of model and training."""


MSDNET = Method(
    name="msdnet",
    summary="MSDNet (ICLR 2018): a dense network of several scales with exits",
    settings=EarlyExitConfig,
    router=no_router,
    network=as_built,
    model="msdnet",
)

RANET = Method(
    name="ranet",
    summary="RANet (CVPR 2020): sub-networks of rising resolution with exits",
    settings=EarlyExitConfig,
    router=no_router,
    network=as_built,
    model="ranet",
)
