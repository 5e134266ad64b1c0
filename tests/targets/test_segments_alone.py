"""The folder of a network runs where nothing is installed but NumPy and one runtime."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from sidestep.targets.segment_folder import write_segments
from tests import strategies
from tests.plan.networks import network_of
from tests.plan.test_network import RDI_NET, SMALL
from tests.targets.segment_folders import exportable_of
from tests.targets.test_segments import COUNT, rule_for

PROGRAM = """
import importlib.util, sys
import numpy as np
from sidestep_segments import Segments
others = {"torch", "sidestep", "onnx", "PIL", "onnxruntime", "openvino"} - {sys.argv[1]}
assert not [name for name in others if importlib.util.find_spec(name)]
segments = Segments(runtime=sys.argv[1], num_threads=2)
images = np.load("images.npy")
one = Segments(runtime=sys.argv[1], num_threads=2)(images[:1])
picture = np.zeros((16, 16, 3), np.uint8)
assert segments.pixels(picture).shape == (3, 16, 16)
several = segments(images)
np.savez("said.npz", one=one.logits, logits=several.logits, exits=several.exits, options=several.options)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_folder_needs_numpy_and_one_runtime(runtime: str, tmp_path: Path) -> None:
    model = SMALL | {"exits": {"at": ["layer1", "layer2"], "width": 4}}
    network, images = network_of(RDI_NET, model), strategies.images(COUNT, 1, size=16)
    rule = rule_for(network, images, "confidence")
    write_segments(exportable_of(network, images, rule, num_segments=9), tmp_path / "out")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # Of the releases that the other tests run with.
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", runtime)]
    made = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"NO PACKAGE INDEX: {made.stderr.strip().splitlines()[-1]}")
    np.save(tmp_path / "out" / "images.npy", images.numpy())
    (tmp_path / "out" / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        [python, "program.py", runtime],
        env=environment,
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    said = np.load(tmp_path / "out" / "said.npz")
    with torch.no_grad():
        expected = network(images, rule=rule)
    np.testing.assert_allclose(said["logits"], expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(said["one"], expected.logits[:1].numpy(), atol=1e-4)
    assert expected.decisions.exits is not None
    assert np.array_equal(said["exits"], expected.decisions.exits.argmax(dim=1).numpy())
    asked = said["options"] >= 0
    assert np.array_equal(said["options"][asked], expected.decisions.paths().numpy()[asked])
