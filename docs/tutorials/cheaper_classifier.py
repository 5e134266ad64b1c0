# %% [markdown]
# # Make a timm classifier cheaper
#
# Two ways, from the one that asks for least: a cascade with a smaller network, which trains nothing, and
# gates in front of the blocks of the one that you have. The data are scikit-learn's digits, so that this
# runs anywhere; with photographs, name your folder as `source`.

# %%
from pathlib import Path

import sidestep

EPOCHS = 12
RUNS = Path("runs/cheaper")
SMALL, LARGE = "timm/regnetx_002", "timm/regnetx_006"

# %% [markdown]
# ## Two trained classifiers
#
# You have these already: `timm/NAME=weights.safetensors` names one wherever a run is named. Here both are
# trained, as static networks.

# %%
runs = {}
for name in (SMALL, LARGE):
    recipe = sidestep.load_recipe(
        "quickstart_static", ["--model.name", name, "--training.phases.0.epochs", str(EPOCHS)]
    )
    runs[name] = sidestep.train(recipe, RUNS / Path(name).name)
    report = sidestep.evaluate(runs[name])
    print(f"{name:17} {report.accuracy:.1%} at {report.gflops * 1e3:.1f} MFLOPs")

# %% [markdown]
# ## A cascade
#
# The small network answers, and the large one is asked about images that the small one is unsure of. How
# sure it has to be is solved on validation images for a budget, here for at most as much as 60 % of the
# large network's MACs.

# %%
cascade = sidestep.make_cascade(
    [str(runs[SMALL]), str(runs[LARGE])],
    RUNS / "cascade",
    data={"source": "digits", "image_size": 16, "crop_padding": 1, "flip": False},
    budget=sidestep.ExitBudget(fraction=0.6),
).folder
report = sidestep.evaluate(cascade, execution="cascade")
print(f"cascade          {report.accuracy:.1%} at {report.gflops * 1e3:.1f} MFLOPs", report.exit_rates)

# %% [markdown]
# Another budget needs no new cascade, and `curve` draws them all. [Cascades](../methods/cascades.md) says
# how members answer together, and [choosing](../choosing.md) how to find the best members among many.

# %%
for point in sidestep.curve(cascade, num_budgets=5).points:
    print(f"{point.kind:9} {point.point.accuracy:.1%} at {2e-6 * point.point.macs:.1f} MFLOPs")

# %% [markdown]
# ## Gates in front of its blocks
#
# `model.name: timm/...` with a method sees the network as blocks that can be skipped, and `init` starts
# from what it has learnt. Outputs are the original's as long as everything runs; training then finds out
# what can be left out.

# %%
gated = sidestep.load_recipe(
    "quickstart",
    [
        *("--model.name", LARGE, "--model.init", str(runs[LARGE] / "best.safetensors")),
        *("--training.phases.0.epochs", "1", "--training.phases.1.epochs", str(EPOCHS)),
        *("--training.phases.0.lr", "0.02", "--training.phases.1.lr", "0.02"),
    ],
)
report = sidestep.evaluate(sidestep.train(gated, RUNS / "gated"), execution="gathered")
print(f"gates            {report.accuracy:.1%} at {report.gflops * 1e3:.1f} MFLOPs, {report.num_paths} paths")

# %% [markdown]
# `sidestep.wrap(model, method="rdi_net", target=0.6)` does the same to a network in your own training loop
# ([wrapping](../wrapping.md)). Before you ship either, time it: `sidestep bench RUN` puts the network
# beside the static one in every runtime, since MACs are not milliseconds ([why is it not
# faster?](../why_not_faster.md)).
