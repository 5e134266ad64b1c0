"""What the command line understands."""

from __future__ import annotations

from jsonargparse import ArgumentParser

# Commands whose other options override a recipe, and their own options: whether a value follows.
_OVERRIDABLE = ("train", "sweep", "quickstart")
_OWN_OPTIONS = {
    "--out": True,
    "--resume": False,
    "--accelerator": True,
    "--devices": True,
    "--num-nodes": True,
    "--strategy": True,
    "--graph": True,
    "--compile": True,
    "--over": True,
    "--workers": True,
    "--replicas": True,
    "--storage": True,
    "--json": False,
    "--help": False,
}


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of the command itself, and those that override a recipe."""
    if not arguments or arguments[0] not in _OVERRIDABLE:
        return arguments, []
    own: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        name = item.partition("=")[0]
        is_own = not name.startswith("--") or name in _OWN_OPTIONS
        kept = own if is_own else overrides
        kept.append(item)
        if "=" not in item and rest and _OWN_OPTIONS.get(name, not is_own):
            kept.append(rest.pop(0))
    return own, overrides


def parser() -> ArgumentParser:
    """Return the parser of all commands; what overrides a recipe is not its own, see `split`."""
    root = ArgumentParser(
        prog="sidestep", description="Networks that decide per image which blocks to execute."
    )
    commands = root.add_subcommands(required=True, dest="subcommand")
    for name, (build, text) in _COMMANDS.items():
        commands.add_subcommand(name, build(), help=text)
    return root


def _train() -> ArgumentParser:
    parser = ArgumentParser(
        description="Train a recipe; --key value overrides it, for example --method.target 0.4."
    )
    parser.add_argument("recipe", type=str, help="YAML file, see recipes/")
    parser.add_argument("--out", type=str | None, help="run folder (default: runs/<recipe name>)")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--devices", type=int | None, help="processes per node (default: 1, or torchrun's)")
    parser.add_argument("--num-nodes", type=int | None, help="nodes of SLURM (default: 1, or torchrun's)")
    parser.add_argument("--strategy", default="auto", help="auto, or ddp for several processes")
    _add_speed(parser)
    return parser


def _sweep() -> ArgumentParser:
    parser = ArgumentParser(
        description="Train recipes at every combination of settings; --key value overrides all of them."
    )
    parser.add_argument("recipes", nargs="+", type=str, help="YAML files")
    parser.add_argument(
        "--over",
        type=str,
        action="append",
        default=[],
        help="key=value,value: what varies; a key of recipes, seed or budget; may be given again",
    )
    parser.add_argument("--out", type=str, default="runs/sweep", help="folder of the run folders")
    parser.add_argument("--workers", type=int, default=1, help="processes; more may be started elsewhere")
    parser.add_argument("--replicas", type=int, default=1, help="runs that a process trains at a time")
    parser.add_argument("--storage", type=str | None, help="URL of a database (default: a file in --out)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or cuda")
    _add_speed(parser)
    _add_json(parser)
    return parser


def _evaluate() -> ArgumentParser:
    parser = ArgumentParser(description="Evaluate a run: arg-max decisions without noise, or drawn ones.")
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--execution", default="masked", help="masked, gathered, cascade (exits), or engine")
    parser.add_argument("--precision", type=str | None, help="of the engine: auto, float32 or bfloat16")
    parser.add_argument("--decisions", default="argmax", help="argmax, or sampled with training's noise")
    parser.add_argument("--seed", type=int | None, help="of sampled decisions (default: 0)")
    parser.add_argument("--split", default="test", help="test or val")
    _add_budget(parser)
    _add_place(parser)
    _add_json(parser)
    return parser


def _calibrate() -> ArgumentParser:
    parser = ArgumentParser(
        description="Solve the thresholds of early exits for a budget, and keep them in the checkpoint."
    )
    parser.add_argument("run", type=str, help="run folder")
    _add_budget(parser)
    _add_place(parser)
    _add_json(parser)
    return parser


def _curve() -> ArgumentParser:
    parser = ArgumentParser(
        description="Accuracy over cost of a run's early exits, into exits.json, .csv and .png of its folder."
    )
    parser.add_argument("run", type=str, help="run folder")
    _add_criterion(parser)
    parser.add_argument("--num-budgets", type=int, default=20, help="from the cheapest to the dearest exit")
    _add_place(parser)
    return parser


def _bench() -> ArgumentParser:
    parser = ArgumentParser(
        description="Measure a run's network beside its static origin in several runtimes."
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--batch-sizes", type=str, default="1,32,256", help="images per call, with commas")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time limit of each precision and batch size"
    )
    _add_source(parser)
    _add_json(parser)
    return parser


def _export() -> ArgumentParser:
    parser = ArgumentParser(description="Write a run's network as a file that other programs run.")
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--to", default="plan", help="format: plan, see docs/plan.md")
    parser.add_argument("--out", type=str | None, help="file (default: best.plan or last.plan in the run)")
    _add_checkpoint(parser)
    return parser


def _run() -> ArgumentParser:
    parser = ArgumentParser(description="Run a plan on image files, in the native engine.")
    parser.add_argument("plan", type=str, help="file that export wrote")
    parser.add_argument("images", nargs="+", type=str, help="pictures")
    parser.add_argument("--precision", type=str, default="auto", help="auto, float32 or bfloat16")
    _add_json(parser)
    return parser


def _methods() -> ArgumentParser:
    parser = ArgumentParser(description="List the methods that recipes can name.")
    _add_json(parser)
    return parser


def _results() -> ArgumentParser:
    parser = ArgumentParser(description="Write a results page from finished runs.")
    parser.add_argument(
        "runs", nargs="+", type=str, help="run folders, one per row, and files (.json) that --out has written"
    )
    parser.add_argument("--title", type=str | None, help="heading of the page (default: the first file's)")
    parser.add_argument(
        "--out",
        type=str | None,
        help="markdown file; figure (.png) and data to make it again (.json) go beside it "
        "(default: the page on standard output)",
    )
    parser.add_argument(
        "--published", type=str | None, help="draw the papers' points too: cifar10, cifar100 or imagenet"
    )
    return parser


def _ledger() -> ArgumentParser:
    parser = ArgumentParser(description="Compare finished runs with what was published.")
    parser.add_argument("runs", nargs="+", type=str, help="run folders, and files (.json) of results pages")
    parser.add_argument("--dataset", type=str | None, help="cifar10, cifar100 or imagenet (default: all)")
    parser.add_argument("--out", type=str | None, help="markdown file (default: standard output)")
    return parser


def _quickstart() -> ArgumentParser:
    parser = ArgumentParser(description="Train, evaluate and time RDI-Net on handwritten digits, in minutes.")
    parser.add_argument("--out", type=str, default="runs/quickstart", help="run folder")
    return parser


_COMMANDS = {
    "train": (_train, "train a recipe into a run folder"),
    "sweep": (_sweep, "train recipes at every combination of settings"),
    "evaluate": (_evaluate, "accuracy, cost and paths of a run"),
    "calibrate": (_calibrate, "early exits that meet a budget"),
    "curve": (_curve, "accuracy over cost of early exits"),
    "bench": (_bench, "measured milliseconds of a run"),
    "export": (_export, "a run's network as a plan for engines"),
    "run": (_run, "what a plan says about image files"),
    "methods": (_methods, "what there is"),
    "results": (_results, "a results page from run folders"),
    "ledger": (_ledger, "published numbers beside those of run folders"),
    "quickstart": (_quickstart, "the main job on embedded data"),
}


def _add_speed(parser: ArgumentParser) -> None:
    parser.add_argument("--graph", type=bool, default=True, help="replay a GPU's steps as CUDA graphs")
    parser.add_argument(
        "--compile", type=bool | None, help="compile units for training (default: where it is known to pay)"
    )


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_checkpoint(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best or last")


def _add_source(parser: ArgumentParser) -> None:
    parser.add_argument("--source", type=str | None, help="where the data lies now (as data.source)")


def _add_place(parser: ArgumentParser) -> None:
    _add_checkpoint(parser)
    _add_source(parser)


def _add_budget(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget", type=float | None, help="mean MACs of early exits, as a fraction of the full network's"
    )
    parser.add_argument("--budget-gflops", type=float | None, help="the same in GFLOPs of 2 x MACs, instead")
    _add_criterion(parser)


def _add_criterion(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--criterion", default="confidence", help="of exits: confidence, margin, entropy or patience"
    )
    parser.add_argument("--no-temperatures", action="store_true", help="fit no temperatures of exits")


def print_train_help() -> None:
    """Print how to train, with every key of a recipe."""
    from sidestep.runs.recipe import settings_by_key

    print("usage: sidestep train RECIPE [--out DIR] [--resume] [--accelerator NAME] [--devices N]")
    print("                             [--num-nodes N] [--strategy NAME] [--graph false] [--compile BOOL]")
    print("                             [--key value ...]\n")
    print("Trains a recipe into a run folder (default: runs/<recipe name>). Keys override the recipe;")
    print("those of a recipe with method rdi_net are:\n")
    for key, text in settings_by_key("rdi_net").items():
        print(f"  --{key}  {text}")
