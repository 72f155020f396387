"""The front door: quick to import, and without any extra."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
# Every package of the extras; an import of one of these is refused.
EXTRAS = [
    "accelerate", "aeon", "arviz", "datasets", "diffrax", "diffusers", "gymnasium", "h5py", "huggingface_hub", "jax",
    "jinja2", "matplotlib", "minari", "mujoco", "PIL", "rich", "safetensors", "scipy", "skimage", "sklearn",
    "tensorboard", "torchcde", "torchdiffeq", "torchmetrics", "torchode", "torchsde", "tqdm", "tyro", "yaml",
]  # fmt: skip
REFUSE = """
import sys, time
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set(sys.argv[1].split(",")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


CODE = """
import torch
begun = time.process_time()
import dxdt, dxdt.compat.torchdiffeq, dxdt.compat.torchsde
import dxdt.diffusion, dxdt.interop, dxdt.mcmc, dxdt.models, dxdt.nn
print(time.process_time() - begun)
try:
    dxdt.interop.load(sys.argv[2])
except ImportError as error:
    print(error)
"""


def test_the_package_is_imported_quickly_and_without_extras(tmp_path: Path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"x")
    command = [sys.executable, "-c", REFUSE + CODE, ",".join(EXTRAS), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 0, done.stderr
    seconds, said = done.stdout.splitlines()
    assert float(seconds) < 2.0  # of the processor, torch itself apart
    assert said.startswith("safetensors is needed here and not installed: run pip install 'dxdt[interop]'")


def test_every_room_is_reached_through_the_names_on_its_way():
    """A function does not hide the room of that name: ``dxdt.diffeq.loop`` is the room, whatever the door exports."""
    rooms = [p.parent.relative_to(SOURCE) for p in (SOURCE / "dxdt").rglob("__init__.py")]
    for room in rooms:
        name = ".".join(room.parts)
        importlib.import_module(name)
        found = sys.modules["dxdt"]
        for part in room.parts[1:]:
            found = getattr(found, part)
        assert found is sys.modules[name], name


ASK = """
import sys
from dxdt.lab.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"torch", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "score", "--help"], ["evaluate", "--help"], ["bench", "--help"]]
)
def test_the_command_line_answers_before_torch_is_imported(words: list[str]):
    command = [sys.executable, "-c", ASK, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 0, done.stderr
