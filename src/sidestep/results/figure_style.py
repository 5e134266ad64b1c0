"""One style for all figures of results: colours that the colour-blind tell apart, markers beside colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which is too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_GRID = "#e5e5e5"


def in_style(axes: Axes, **settings: Any) -> Axes:
    """Return axes in the style of all, with settings such as `xlabel`.

    Args:
        axes: of any figure, before anything is drawn.
        settings: of `Axes.set`.
    """
    axes.set_prop_cycle(color=PALETTE)
    axes.set(**settings)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
