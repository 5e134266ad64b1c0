"""What Python programs call leaves their process as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RECIPE = {
    "name": "tiny",
    "method": {"name": "rdi_net", "router": {"dim": 8}},
    "model": {"name": "cifar_resnet8"},
    "data": {"source": "digits", "image_size": 16, "limit": 64},
    "training": {"phases": [{"name": "joint", "epochs": 1}], "batch_size": 16, "max_steps": 2},
}

SCRIPT = """
import gc, hashlib, json, locale, multiprocessing, os, pickle, random, signal, sys, threading, warnings
from pathlib import Path

import numpy
import torch

# What sidestep's libraries do when they are imported is theirs; what they are asked to do is not.
import rich.style, timm, torchvision, lightning_fabric, matplotlib.pyplot, sklearn, datasets
import torch.utils.tensorboard
import torch._dynamo.config as dynamo, torch._inductor.config as inductor

numpy.random.seed(1), random.seed(2), torch.manual_seed(3)
torch.set_num_threads(1)
signal.signal(signal.SIGTERM, print)
os.environ["OF_THE_CALLER"] = "kept"


def digest(value):
    return hashlib.sha256(pickle.dumps(value)).hexdigest()


def state():
    return {
        "torch's generator": digest(torch.get_rng_state().numpy().tobytes()),
        "NumPy's generator": digest(numpy.random.get_state()),
        "Python's generator": digest(random.getstate()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": [torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))],
        "precision": [torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled],
        "printing": repr(torch._tensor_str.PRINT_OPTS),
        "compiler": digest([str(dynamo.get_config_copy()), str(inductor.get_config_copy())]),
        "processes together": torch.distributed.is_initialized(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        # torch's DataLoader sets one for its processes, once, which calls the one before.
        "signals": [repr(signal.getsignal(n)) for n in sorted(signal.valid_signals()) if n != signal.SIGCHLD],
        "alarms": [signal.getitimer(signal.ITIMER_REAL), signal.set_wakeup_fd(-1)],
        "garbage": [gc.get_freeze_count(), gc.get_threshold(), gc.isenabled(), gc.get_debug()],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "drawing": [matplotlib.rcParams["backend"], digest(str(dict(matplotlib.rcParams)))],
        "warnings": len(warnings.filters),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.stdout), repr(sys.stderr)],
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
    }


import sidestep

recipe, out = sys.argv[1], Path(sys.argv[2])
before = state()
run = sidestep.train(recipe, out)
assert sidestep.evaluate(run).num_images > 0
sidestep.load(run)
with torch.random.fork_rng([]):  # fresh routers are drawn from the caller's generator, as layers are
    sidestep.wrap(timm.create_model("test_resnet", num_classes=3))
after = state()
print(json.dumps({name: [value, after[name]] for name, value in before.items() if value != after[name]}))
"""


def test_load_evaluate_wrap_and_train_leave_the_process_as_it_was(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(recipe), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {}
