# %% [markdown]
# # Add a router
#
# A router of your own in forty lines: it is trained, priced, compared with what it has to beat, and run so
# that skipped blocks cost no time, without an edit of the package. [Extending](../extending.md) has the
# other parts that can be yours: backbones, losses, data, criteria, targets.

# %%
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import sidestep

EPOCHS = 24
RUNS = Path("runs/router")

# %% [markdown]
# ## The idea
#
# Execute a block where its input varies much over the image, compared with other images: two learnt numbers
# per block. A router turns the features in front of a unit, (B, C, H, W), and a state of its own into
# logits, (B, options); index 1 executes.


# %%
class ContrastRouter(sidestep.Router):
    def __init__(self, num_units):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(1) for _ in range(num_units))

    def forward(self, unit, features, state):
        contrast = features.float().var(dim=(2, 3)).mean(dim=1, keepdim=True)
        execute = 4 * self.norms[unit]((contrast + 1e-6).log())
        return torch.cat([torch.zeros_like(execute), execute], dim=1), state


# %% [markdown]
# ## The method
#
# A method is data: which router, which sampler in training, which losses. Evaluation takes the arg-max.
# Settings are checked with all others of a recipe before anything runs.


# %%
@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    target: float = 0.6

    def __post_init__(self):
        if not 0 < self.target <= 1:
            raise sidestep.RecipeError(f"target must be in (0, 1], got {self.target}; 0.6 is usual")


def losses(output, batch, cost, settings):
    return {"cost": 8 * sidestep.cost_loss(output.decisions, settings.target, cost, scope="network")}


sidestep.register_method(
    sidestep.Method(
        name="contrast",
        summary="executes where features vary much",
        settings=ContrastSettings,
        router=lambda backbone, settings: ContrastRouter(len(backbone.units)),
        sampler=lambda settings, noise: sidestep.GumbelSoftmax(noise=noise, hard=True),
        losses=losses,
        budget=lambda settings: "target",
    )
)

# %% [markdown]
# ## Trained beside what it has to beat
#
# The rival of a gate is a fixed subset of blocks of the same cost, and blocks that are dropped by chance. A
# warm-up under random paths comes first in all three: a router that meets blocks which have learnt nothing
# learns to skip them.

# %%
METHODS = {
    "contrast": "{name: contrast, target: 0.6}",
    "fixed subset": "{name: fixed_path, num_units: 5, order: spread}",
    "by chance": "{name: random_drop, keep_rate: 0.6}",
}
length = ["--training.phases.0.epochs", str(EPOCHS // 6), "--training.phases.1.epochs", str(EPOCHS)]
reports = {}
for name, method in METHODS.items():
    recipe = sidestep.load_recipe("quickstart", ["--method", method, *length])
    reports[name] = sidestep.evaluate(sidestep.train(recipe, RUNS / name.replace(" ", "_")))
for name, report in reports.items():
    print(
        f"{name:12} {report.accuracy:.1%} at {report.fraction_of_full:.1%} of the MACs, "
        f"{report.num_paths} paths, {report.image_bits:.2f} bits about the image"
    )

# %% [markdown]
# Read it like this: more accurate than by chance is easy. More than the fixed subset at the same cost means
# that looking at the image has paid; more bits without that mean that it looked and learnt nothing. One
# seed on 297 images has a standard error of more than a point, so [compare over
# seeds](../tutorials/compare_methods.md).
#
# ## Skipped for real
#
# Executions know units and decisions, and no method, so gathered execution runs yours like any other.

# %%
run = RUNS / "contrast"
gathered = sidestep.evaluate(run, execution="gathered")
assert abs(gathered.accuracy - reports["contrast"].accuracy) < 1e-3

# %% [markdown]
# Plans know the operations of the engine, and refuse others in a sentence. A variance with a logarithm is
# none of them, so this router stays in PyTorch; [segments](../segments.md) and [plans](../plan.md) say what
# can be carried away.

# %%
try:
    sidestep.export_run(run)
except sidestep.ExportError as error:
    print(error)

# %% [markdown]
# On the command line the file that registers a method is named with every command: `sidestep train my.yaml
# --import my.py`.
