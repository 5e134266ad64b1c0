"""How the tensors of a static weight file are called in a network."""

from __future__ import annotations

from torch import nn

_HEADS = ("fc", "head", "classifier")


class StaticNames(nn.Module):
    """A network that static weights can be loaded into; by default its names are those of the files."""

    @property
    def origin(self) -> nn.Module:
        """Return the module that has the names of static weight files: this one, or what it wraps."""
        return self

    @property
    def skip_names(self) -> set[str]:
        """Return the state-dict names of what skipping alone runs, which static weight files lack."""
        return set()

    @property
    def head_names(self) -> set[str]:
        """Return the state-dict names of the classifier, which other classes want anew.

        Here these are the names below `fc`, `head` or `classifier` of `origin`.
        """
        return {name for name in self.origin.state_dict() if name.partition(".")[0] in _HEADS}

    def static_name(self, name: str) -> str:
        """Return the name that a tensor of a static weight file has here."""
        return name
