# %% [markdown]
# # Train RDI-Net
#
# A ResNet-20 whose blocks can be skipped, on handwritten digits that come with scikit-learn: trained,
# looked at, timed, and exported, in some minutes on two CPU cores. CIFAR-10 and the paper's networks differ
# in the recipe's name alone.

# %%
from pathlib import Path

import torch

import sidestep

EPOCHS = 36
RUNS = Path("runs/tutorial")

# %% [markdown]
# ## The recipe
#
# A recipe says method, model, data and training. `sidestep recipes` lists those that come with the package,
# and any key can be changed, here and on the command line (`sidestep train quickstart --method.target
# 0.5`). `target` is the share of the blocks that are to run; wrong names and values are reported all at
# once, before anything is computed.

# %%
length = ["--training.phases.0.epochs", str(EPOCHS // 6), "--training.phases.1.epochs", str(EPOCHS)]
recipe = sidestep.load_recipe("quickstart", ["--method.target", "0.5", *length])
print(recipe.as_dict()["method"])

# %% [markdown]
# Its first phase is the warm-up of the paper: blocks learn under random paths, so that each can do without
# the others, and routers are not asked. In the second one all learn together: task loss, cost loss (eq.
# 15), and with `--method.srm.alpha 0.2` the rank loss that makes similar images take similar paths (eq. 10
# to 12). [The method's page](../methods/rdi_net.md) goes through the equations.

# %%
run = sidestep.train(recipe, RUNS / "rdi_net")
static = sidestep.train(
    sidestep.load_recipe("quickstart_static", ["--training.phases.0.epochs", str(EPOCHS)]), RUNS / "static"
)

# %% [markdown]
# ## What it does with images
#
# `evaluate` counts on the test split, which nothing was chosen on. Costs are those of the decisions that
# were made, routers included. Masked execution computes everything and blends; gathered execution lets only
# those images into a block that execute it. Both say the same.

# %%
masked, gathered = (sidestep.evaluate(run, execution=way) for way in ("masked", "gathered"))
rival = sidestep.evaluate(static)
print(f"static   {rival.accuracy:.1%} at {rival.gflops:.4f} GFLOPs")
print(f"RDI-Net  {masked.accuracy:.1%} at {masked.gflops:.4f} GFLOPs, {masked.num_paths} paths")
assert abs(masked.accuracy - gathered.accuracy) < 1e-3

# %% [markdown]
# Which blocks run, over all images, and how much a path says about its image: at 0 bits all images take the
# same path, and the gates have become a fixed subset of blocks. Then a static network of that subset is as
# good, and simpler ([controls](../methods/controls.md)).

# %%
print(" ".join(f"{rate:.2f}" for rate in masked.keep_rates))
print(f"{masked.image_bits:.2f} bits about the image, {masked.class_bits:.2f} about its class")

# %% [markdown]
# ## Decisions, one image at a time
#
# `load` returns the network, ready to be called. Its output holds class scores and decisions: `weights` is
# (images, units, options), and option 1 executes. What an image costs follows from its row.

# %%
network = sidestep.load(run)
images = torch.rand(4, 3, 16, 16) * 2 - 1
with torch.inference_mode():
    output = network(images, execution=sidestep.gathered)
cost = sidestep.measure_cost(network, (16, 16))
for path, macs in zip(output.decisions.weights.argmax(dim=2), cost.per_sample(output.decisions), strict=True):
    print("".join(str(int(option)) for option in path), f"{macs / 1e6:.2f} M MACs")

# %% [markdown]
# ## What it saves in milliseconds
#
# `bench` times every execution beside the static network in every runtime that is installed, on real
# images. In PyTorch routers cost more than the blocks of so small a network; the native engine, where it is
# installed (`pip install ./engine`), is what makes skipped blocks free. [Why is it not
# faster?](../why_not_faster.md) explains the numbers.

# %%
for row in sidestep.bench(run, batch_sizes=(1, 32), seconds=2.0).rows:
    print(f"batch {row.batch_size:3}  {row.runtime:24} {row.ms_per_image:.3f} ms an image")

# %% [markdown]
# ## Out of PyTorch
#
# A plan is one file with weights and decisions, for the engine; `to="onnx"` writes graphs for ONNX Runtime
# and OpenVINO. [Deploy](../tutorials/deploy.md) goes on from here.

# %%
print(sidestep.export_run(run).path)
