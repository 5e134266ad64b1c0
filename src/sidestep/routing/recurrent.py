"""SkipNet's recurrent gate: one small LSTM that walks through the network beside the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.layers.pool import global_average_pool
from sidestep.routing.router import Router, always

State = tuple[Tensor, Tensor] | None


class RecurrentRouter(Router):
    """An LSTM over units, shared by all (SkipNet's RNN gate); the first unit always executes.

    Every unit has a linear embedding of its pooled input; the LSTM, whose state is zero for a new image, and
    the linear map to the logit of executing are shared. Embeddings start as the convolutions that they are in
    the released code, N(0, 2 / fan-out), what is shared by Xavier's rule with zero biases, as in its ImageNet
    program.

    Args:
        channels: input channels of every unit.
        width: of embedding and LSTM (SkipNet: 10).
    """

    def __init__(self, channels: Sequence[int], *, width: int = 10) -> None:
        super().__init__()
        embeddings = [nn.Linear(c, width) for c in channels[1:]]
        self.embed = nn.ModuleList(embeddings)
        self.lstm = nn.LSTMCell(width, width)
        self.decide = nn.Linear(width, 1)
        for embed in embeddings:
            nn.init.kaiming_normal_(embed.weight, mode="fan_out", nonlinearity="relu")
        for name, parameter in [*self.lstm.named_parameters(), *self.decide.named_parameters()]:
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_normal_(parameter)

    def begin(self, images: Tensor) -> State:
        return None

    def forward(self, unit: int, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (B, 2), of which that of skipping is 0, and the LSTM's next state."""
        if unit == 0:
            return always(1, 2, features), state
        state = self.lstm(self.embed[unit - 1](global_average_pool(features)), state)
        assert state is not None
        execute = self.decide(state[0])
        return torch.cat([torch.zeros_like(execute), execute], dim=1), state
