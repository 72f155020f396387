"""diffusers in the same process: wrapped networks and pipelines, folders read both ways, our solvers as a scheduler."""

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import dxdt
from dxdt import interop
from dxdt.diffusion import VE, VP, Denoiser, Index, Noise, gaussian_oracle, integrate
from interop.foreign import fingerprint, write
from interop.weights import images

diffusers = pytest.importorskip("diffusers", reason="the extra interop is not installed")

SMALL = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)


def lively(**changes: Any) -> Any:
    net = diffusers.UNet2DModel(**{**SMALL, **changes}).eval().requires_grad_(False)
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["diffusers_ddpm_small", "diffusers_skips_small", "diffusers_scale_shift_small"])
def test_folders_are_read_with_and_without_diffusers(name: str, own: bool, tmp_path: Path):
    said = fingerprint(name)
    path = write(said, tmp_path)
    x, t = images(tuple(said["ask"]["shape"])), torch.tensor(said["ask"]["times"], dtype=torch.float64)
    options = {"labels": torch.tensor([1, 3])} if said["ask"]["labels"] else {}
    with torch.no_grad():
        mine = interop.load(path, own=own)(x, t, **options)
        other = interop.load(path)(x, t, **options)
    size = other.noise.std()
    assert ((mine.noise - other.noise) / size).abs().max() < 2e-5


def test_what_only_diffusers_knows_is_built_by_it(tmp_path: Path):
    net = lively(act_fn="gelu")
    net.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 1.0])
    with torch.no_grad():
        noise = interop.load(tmp_path)(x, t).noise
        assert torch.allclose(noise, net(x, torch.tensor([499, 999])).sample, atol=1e-6)
    with pytest.raises(ValueError, match="act_fn='gelu'"):
        interop.load(tmp_path, own=True)


def test_weights_in_shards_halves_and_old_names_are_read(tmp_path: Path):
    net = lively()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    process = dict(process=VP(), parameterisation=Noise(), clock=Index.levels(1000))
    wanted = Denoiser(lambda x, i: net(x, i).sample, VP(), Noise(), Index.levels(1000))(x, t).noise
    net.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.allclose(interop.load(tmp_path / "shards", **process)(x, t).noise, wanted, atol=1e-5)
    net.save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert list((tmp_path / "bin").glob("*.bin"))
    assert torch.allclose(interop.load(tmp_path / "bin", **process)(x, t).noise, wanted, atol=1e-5)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, value in net.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        tensors[name] = value
    net.save_pretrained(tmp_path / "old")
    dxdt_file = tmp_path / "old" / "diffusion_pytorch_model.safetensors"
    import safetensors.torch

    safetensors.torch.save_file(tensors, dxdt_file)
    assert torch.allclose(interop.load(tmp_path / "old", **process)(x, t).noise, wanted, atol=1e-5)
    net.half().save_pretrained(tmp_path / "half", variant="fp16")
    assert torch.allclose(interop.load(tmp_path / "half", **process)(x, t).noise, wanted, atol=0.02)


ANSWERS = {
    "epsilon": lambda m, x, a, c: m,
    "sample": lambda m, x, a, c: (x - a * m) / c,
    "v_prediction": lambda m, x, a, c: a * m + c * x,
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_a_wrapped_network_says_the_noise_of_its_scheduler(answer: str, schedule: str):
    scheduler = diffusers.DDPMScheduler(prediction_type=answer, beta_schedule=schedule)
    net = lively()
    denoiser = interop.wrap(net, scheduler)
    x, index = torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 990])
    bar = scheduler.alphas_cumprod.double()[index].reshape(-1, 1, 1, 1)
    m = net(x, index).sample
    noise = ANSWERS[answer](m.double(), x.double(), bar.sqrt(), (1 - bar).sqrt())
    got = denoiser(x, (index + 1).double() / 1000)
    # The library's own products are sums of float32.
    assert torch.allclose(got.noise.double(), noise, rtol=2e-3, atol=2e-3)
    if answer == "epsilon":
        step = scheduler.step(m[2:3], 500, x[2:3])
        clipped = got.data[2:3].clamp(-1, 1)
        assert torch.allclose(clipped, step.pred_original_sample, atol=1e-3)


def test_a_learned_variance_is_left_out_and_classes_are_passed_on():
    net = lively(out_channels=6, num_class_embeds=5)
    denoiser = interop.wrap(net, diffusers.DDPMScheduler(variance_type="learned_range"))
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 0.5]), torch.tensor([1, 4])
    got = denoiser(x, t, labels=labels).noise
    assert torch.allclose(got, net(x, torch.tensor([499, 499]), class_labels=labels).sample[:, :3], atol=1e-5)


def test_pipelines_and_exploding_schedulers_are_wrapped():
    net = lively(time_embedding_type="fourier", center_input_sample=True)
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    pipeline = diffusers.DDPMPipeline(unet=net, scheduler=scheduler)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9])
    denoiser = interop.wrap(pipeline)
    assert denoiser.process == VE(0.01, 50.0)
    sigma = 0.01 * 5000**t
    assert torch.allclose(denoiser(x, t).score, net(x, sigma).sample, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="pass its scheduler"):
        interop.wrap(net)
    assert interop.wrap(net, process=VP()).process == VP()


SOLVERS = {
    "Tsit5": (None, 0.0),
    "Euler-Maruyama": (None, 1.0),
    "exponential, order 3": (dxdt.Exponential(order=3), 0.0),
    "exponential with noise": (dxdt.Exponential(order=2), 1.0),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_pipeline_with_our_scheduler_gives_what_our_sampler_gives(name: str):
    solver, tau = SOLVERS[name]
    net, ddpm = lively(), diffusers.DDPMScheduler()
    scheduler = interop.Scheduler.like(ddpm, solver=solver, tau=tau)
    pipeline = diffusers.DDPMPipeline(unet=net, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    got = pipeline(2, generator, num_inference_steps=4, output_type="pt").images
    generator.manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    denoiser = interop.wrap(net, ddpm)
    with torch.no_grad():
        y = integrate(denoiser, x, steps=4, solver=solver, tau=tau, seed=seed, t0=1e-3).y1
        y = denoiser(y, torch.tensor(1e-3)).data
    assert torch.allclose(got, (y / 2 + 0.5).clamp(0, 1), atol=1e-4)


def exact(schedule: Any, std: float = 0.5) -> tuple[Any, Any]:
    """A scheduler, and the exact network for normal data."""
    scheduler = interop.Scheduler.like(diffusers.DDPMScheduler(), **schedule)
    oracle = gaussian_oracle(scheduler.process, torch.full((2,), 0.3), torch.full((2,), std))

    def net(x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return oracle(x, (told.double() + 1) / 1000).noise

    return scheduler, net


def test_a_loop_of_ones_own_reaches_the_exact_law():
    scheduler, net = exact({"solver": dxdt.Exponential(order=3)})
    scheduler.set_timesteps(100)
    x = torch.randn(2000, 2, dtype=torch.float64)
    start = x
    for t in scheduler.timesteps:
        step = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x)
        x = step.prev_sample
    assert len(scheduler) == len(scheduler.timesteps)
    assert torch.equal(step.prev_sample, step.pred_original_sample)
    # The flow of a normal law is affine: x_0 = 0.3 + 0.5 z, less what the last denoising takes away.
    assert torch.allclose(x, 0.3 + 0.5 * start, atol=0.02)


def test_gradients_flow_through_the_scheduler():
    scheduler, net = exact({"solver": dxdt.Exponential(order=2)})
    scheduler.set_timesteps(5)
    x = start = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
    (slope,) = torch.autograd.grad(x.sum(), start)
    assert torch.allclose(slope, slope[0, 0].expand_as(slope))
    assert 0.2 < slope[0, 0] < 0.8


def test_steps_out_of_order_are_refused_and_a_new_plan_begins_again():
    scheduler, net = exact({})
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(torch.zeros(1, 2), 999, torch.zeros(1, 2))
    x = torch.randn(1, 2)
    for _ in range(2):
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match="waits for"):
            scheduler.step(x, 5.0, x)
        scheduler.step(net(x, scheduler.timesteps[0]), scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="steps=0"):
        scheduler.set_timesteps(0)


def test_a_solve_that_is_given_up_keeps_no_thread():
    scheduler, net = exact({})
    for _ in range(3):
        scheduler.set_timesteps(3)
        x = torch.randn(1, 2)
        scheduler.step(net(x, scheduler.timesteps[0]), scheduler.timesteps[0], x)
    del scheduler
    gc.collect()
    ours = [thread for thread in threading.enumerate() if thread.name == "dxdt scheduler"]
    for thread in ours:
        thread.join(5)
    assert not any(thread.is_alive() for thread in ours)


def test_a_failure_in_the_solve_is_raised_where_the_step_was_asked():
    scheduler, _ = exact({})
    scheduler.set_timesteps(2)
    x = torch.randn(1, 2)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        scheduler.step(torch.zeros(7, 2), scheduler.timesteps[0], x)


def test_noise_is_added_as_the_library_adds_it():
    ddpm = diffusers.DDPMScheduler()
    x, noise, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 400, 999])
    mine = interop.Scheduler.like(ddpm).add_noise(x, noise, t)
    assert torch.allclose(mine, ddpm.add_noise(x, noise, t), atol=1e-5)
    exploding = interop.Scheduler.like(diffusers.ScoreSdeVeScheduler())
    with pytest.raises(ValueError, match="do not say the time"):
        exploding.add_noise(x, noise, t)
