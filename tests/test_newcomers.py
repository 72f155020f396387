"""Forty things that people try who come from elsewhere: what is right works, what is wrong ends in one sentence.

They come from torchdiffeq, with a diffusers checkpoint, to train on their own images, or with a table of numbers.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dxdt
from dxdt import diffusion, interop
from dxdt.lab.cli import main

Y0 = torch.tensor([0.0, 1.0])
TS = torch.linspace(0, 10, 21)
VP = diffusion.VP()
NORMAL = diffusion.gaussian_oracle(VP, mean=torch.zeros(2), std=torch.tensor(0.5))
NET = torch.nn.Linear(2, 2)


def oscillator(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], -1)


def solve(field=oscillator, y0=Y0, t=TS, **options):
    return dxdt.solve(dxdt.ODE(field), y0, t, **options)


def near(value, right, slack=1e-2):
    return abs(float(value) - right) < slack


# What works: the call, and what is true of its answer.
WORKS = {
    "torchdiffeq's call, times and all": (lambda: solve(), lambda s: near(s.y1[0], math.sin(10)) and len(s.ys) == 21),
    "times as a list": (lambda: solve(t=[0, 1, 2]), lambda s: near(s.ys[1, 0], math.sin(1))),
    "times as an array": (lambda: solve(t=np.linspace(0, 2, 5)), lambda s: s.ys.shape == (5, 2)),
    "the drop-in": (
        lambda: __import__("dxdt.compat.torchdiffeq", fromlist=["odeint"]).odeint(oscillator, Y0, TS, method="rk4"),
        lambda ys: near(ys[-1, 0], math.sin(10)),
    ),
    "tolerances by name": (lambda: solve(rtol=1e-8, atol=1e-8), lambda s: near(s.y1[0], math.sin(10), 1e-5)),
    "a module": (lambda: dxdt.NeuralODE(oscillator)(Y0, TS), lambda ys: ys.shape == (21, 2)),
    "a module with rows of times": (
        lambda: dxdt.NeuralODE(oscillator, per_sample=True)(torch.stack([Y0, Y0]), torch.stack([TS, 2 * TS], 1)),
        lambda ys: near(ys[-1, 1, 0], math.sin(20)),
    ),
    "a path alone, and its end": (lambda: solve(save=dxdt.Save(dense=True), t=(0, 10)).y1, lambda y: y.shape == (2,)),
    "events in vmap": (
        lambda: torch.vmap(
            lambda h: solve(lambda t, y: -1 + 0 * y, h[None], (0.0, 9.0), event=dxdt.Event(lambda t, y: y[0])).t1
        )(torch.tensor([1.0, 2.0])),
        lambda t: torch.allclose(t.double(), torch.tensor([1.0, 2.0]).double(), atol=1e-3),
    ),
    "an event that is zero at the start": (
        lambda: solve(y0=torch.tensor([0.0, 1.0]), t=(0.0, 9.0), event=dxdt.Event(lambda t, y: y[0])).t1,
        lambda t: near(t, math.pi),
    ),
    "a sample": (lambda: diffusion.sample(NORMAL, (500, 2), steps=30), lambda x: near(x.std(), 0.5, 0.06)),
    "a sample with noise": (
        lambda: diffusion.sample(NORMAL, (500, 2), steps=200, solver=dxdt.EulerMaruyama()),
        lambda x: near(x.std(), 0.5, 0.08),
    ),
    "a sample by tolerance": (
        lambda: diffusion.sample(NORMAL, (500, 2), solver=dxdt.Tsit5(), rtol=1e-3, atol=1e-3),
        lambda x: near(x.std(), 0.5, 0.06),
    ),
    "a likelihood of pictures in seconds": (
        lambda: diffusion.log_likelihood(
            diffusion.gaussian_oracle(VP, torch.zeros(1, 16, 16), torch.tensor(1.0)), torch.randn(2, 1, 16, 16)
        ),
        lambda found: found.log_prob.isfinite().all() and found.evaluations < 100,
    ),
}

# What is wrong: the call, and the remedy that its sentence names.
WRONG = {
    "a field in place of an equation": (lambda: dxdt.solve(oscillator, Y0, TS), r"dxdt\.ODE\(field\)"),
    "torchdiffeq's method": (lambda: solve(method="rk4"), "it is called solver here"),
    "a word for a solver": (lambda: solve(solver="rk4"), r"dxdt\.RK4\(\)"),
    "the class of a solver": (lambda: solve(solver=dxdt.RK4), r"RK4\(\)"),
    "a misspelt option": (lambda: solve(atoll=1e-3), "did you mean atol"),
    "a misspelt option of a module": (lambda: dxdt.NeuralODE(oscillator, max_step=3), "did you mean max_steps"),
    "one time": (lambda: solve(t=1.0), r"pair \(t0, t1\)"),
    "times that turn round": (lambda: solve(t=[0.0, 2.0, 1.0]), "sort them"),
    "no steps for Euler": (lambda: solve(solver=dxdt.Euler(), t=(0, 1)), "give dt"),
    "tolerances for Euler": (lambda: solve(solver=dxdt.Euler(), t=(0, 1), rtol=1e-3), "give dt alone"),
    "a field of another shape": (lambda: solve(field=lambda t, y: y[0], t=(0, 1)), "shape"),
    "whole numbers for a state": (lambda: solve(y0=torch.tensor([0, 1])), "float"),
    "an SDE without a path": (
        lambda: dxdt.solve(dxdt.SDE(lambda t, y: -y, lambda t, y: y), Y0, (0, 1), dt=0.1, solver=dxdt.EulerMaruyama()),
        r"driver=dxdt\.Brownian\(seed=0\)",
    ),
    "a room that is not there": (lambda: dxdt.model, "models"),
    "a network in place of a denoiser": (lambda: diffusion.sample(NET, (3, 2)), r"diffusion\.Denoiser\(network"),
    "a word for a sampler": (lambda: diffusion.sample(NORMAL, (3, 2), steps=5, solver="ddim"), r"diffusion\.DDIM\(\)"),
    "a word for a grid": (lambda: diffusion.sample(NORMAL, (3, 2), steps=5, grid="karras"), r"diffusion\.Karras\(\)"),
    "a number for a shape": (lambda: diffusion.sample(NORMAL, 2, steps=5), r"\(batch, \*data shape\)"),
    "half a step": (lambda: diffusion.sample(NORMAL, (3, 2), steps=5.5), "whole number"),
    "diffusers' word for steps": (
        lambda: diffusion.sample(NORMAL, (3, 2), num_inference_steps=5),
        "called steps here",
    ),
    "a model of the hub": (lambda: interop.load("google/ddpm-cifar10-32"), "snapshot_download"),
    "a checkpoint that is not there": (lambda: interop.load("model.pth"), "check the name"),
    "saving any network": (lambda: interop.save("x.safetensors", NET), "give a Denoiser"),
}

COMMANDS = {
    "a misspelt command": (["smaple"], "did you mean sample"),
    "training what is not known": (["train", "classifier"], "known is score"),
    "data that are not there": (["train", "score", "--data", "fotos"], "a file or folder that exists"),
    "an empty folder": (["train", "score", "--data", "empty"], "put"),
    "photographs of all sizes": (["train", "score", "--data", "photos"], "--size 64"),
    "a model that is not there": (["sample", "runs/score"], "does not exist"),
    "likelihoods of nothing": (["likelihood", "nothing.pth"], "check the name"),
    "runs where there are none": (["runs"], "train one, or name another folder"),
    "a recipe that is not there": (["train", "score", "--config", "imagenet"], "recipes cifar10, mnist"),
    "a width without a run": (["average", "runs/score", "--width", "0.1"], "train one"),
}


def is_a_sentence(text: str) -> bool:
    return "\n" not in text.strip() and len(text) < 400 and "Traceback" not in text


def test_there_are_forty():
    assert len(WORKS) + len(WRONG) + len(COMMANDS) >= 40


@pytest.mark.parametrize("task", WORKS)
def test_what_is_right_works(task):
    call, holds = WORKS[task]
    assert holds(call())


@pytest.mark.parametrize("task", WRONG)
def test_what_is_wrong_names_its_remedy_in_a_sentence(task):
    call, remedy = WRONG[task]
    with pytest.raises((TypeError, ValueError, AttributeError, FileNotFoundError), match=remedy) as told:
        call()
    assert is_a_sentence(str(told.value))


@pytest.mark.parametrize("task", COMMANDS)
def test_a_wrong_command_names_its_remedy_in_a_sentence(task, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    for k in range(4):
        Image.new("RGB", (8 + k, 8)).save(tmp_path / f"photos/{k}.png")
    args, remedy = COMMANDS[task]
    with pytest.raises(SystemExit) as ended:
        main(args)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and is_a_sentence(said)
    assert re.search(remedy, said)
