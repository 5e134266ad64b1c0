from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp

from sidestep.losses.budget import cost_loss
from sidestep.losses.policy_gradient import leave_one_out_advantage
from sidestep.types import CostModel, Decisions

PRICES = CostModel(fixed=1.0, options=torch.tensor([[0.0, 2.0], [0.0, 6.0]]), routers=torch.zeros(2))
EXECUTION = torch.tensor([[1.0, 0.2], [0.4, 0.6], [0.0, 0.9], [0.3, 0.7]])


def loss_and_gradient(execution: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    v = execution.clone().requires_grad_()
    loss = cost_loss(Decisions(weights=torch.stack([1 - v, v], dim=2)), 0.3, PRICES, scope=scope)
    loss.backward()
    return loss.detach(), v.grad


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    rows = EXECUTION[2 * rank : 2 * rank + 2]
    results = {scope: loss_and_gradient(rows, scope) for scope in ("unit", "network")}
    results["advantage"] = leave_one_out_advantage(rows)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_half_the_batch_see_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    mp.start_processes(one_of_two, (str(tmp_path),), nprocs=2, start_method="spawn")
    shards = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for scope in ("unit", "network"):
        loss, gradient = loss_and_gradient(EXECUTION, scope)
        for shard in shards:
            torch.testing.assert_close(shard[scope][0], loss)
        # Data-parallel training averages gradients over processes, which halves what each of two hands in.
        together = torch.cat([shard[scope][1] for shard in shards]) / 2
        torch.testing.assert_close(together, gradient)
    advantages = torch.cat([shard["advantage"] for shard in shards])
    torch.testing.assert_close(advantages, leave_one_out_advantage(EXECUTION))
