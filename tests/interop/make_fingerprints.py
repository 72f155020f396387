"""Write the fingerprints that the tests compare with, by the authors' own code, which stays outside.

    python tests/interop/make_fingerprints.py FOLDER [NAME ...]

FOLDER holds `score_sde_pytorch` and `edm`, checked out from their authors; diffusers is the installed one. For every
case the authors' network is filled with the weights of `weights.py`, stored by the authors' own means, asked, and
compared with what `dxdt.interop.load` makes of the file. A fingerprint holds the keys with their shapes, what was
asked, some entries of the answer, and the largest difference that was measured, relative to the answer's deviation.
"""

import dataclasses
import json
import pickle
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from dxdt import interop  # noqa: E402
from dxdt.diffusion import VE  # noqa: E402
from interop.weights import images, probe, weight  # noqa: E402

OUT = HERE / "fingerprints"


@dataclasses.dataclass
class Case:
    """One file of the authors, what they answer, and what of ours is compared with it."""

    net: nn.Module
    write: Callable[[Path], Path]
    theirs: Callable[[Tensor, Tensor], Tensor]
    ours: Callable[[Any, Tensor, Tensor], Tensor]
    raw: Callable[[Tensor, Tensor], Tensor]
    inner: Callable[[nn.Module, Tensor, Tensor], Tensor]
    told: Tensor
    ask: dict[str, Any]
    about: dict[str, Any]


def fill(net: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Fill a network by the formula; return the keys with their shapes."""
    keys = {}
    for name, value in net.state_dict().items():
        if not name.endswith(skip) or not skip:
            value.copy_(weight(name, tuple(value.shape)))
        keys[name] = tuple(value.shape)
    return keys


# -- score SDE -----------------------------------------------------------------------------------------------------


def score_sde_modules(folder: Path) -> types.SimpleNamespace:
    """Import the authors' modules on a machine without a compiler for GPUs."""
    import torch.utils.cpp_extension as extension

    extension.load = lambda *args, **options: None
    sys.path.insert(0, str(folder / "score_sde_pytorch"))
    import sde_lib

    from models import ddpm, ema, ncsnpp, utils

    return types.SimpleNamespace(sde_lib=sde_lib, ddpm=ddpm, ema=ema, ncsnpp=ncsnpp, utils=utils)


MODEL = dict(
    name="ncsnpp",
    sigma_min=0.01,
    sigma_max=50,
    num_scales=1000,
    beta_min=0.1,
    beta_max=20.0,
    dropout=0.1,
    embedding_type="fourier",
    scale_by_sigma=True,
    normalization="GroupNorm",
    nonlinearity="swish",
    nf=128,
    ch_mult=(1, 2, 2, 2),
    num_res_blocks=4,
    attn_resolutions=(16,),
    resamp_with_conv=True,
    conditional=True,
    fir=True,
    fir_kernel=[1, 3, 3, 1],
    skip_rescale=True,
    resblock_type="biggan",
    progressive="none",
    progressive_input="residual",
    progressive_combine="sum",
    init_scale=0.0,
    fourier_scale=16,
)
VP_MODEL = dict(embedding_type="positional", scale_by_sigma=False, fir=False, progressive_input="none")
SMALL = dict(nf=32, ch_mult=(1, 2), num_res_blocks=1)
SKIPS = dict(progressive="output_skip", progressive_input="input_skip")


def score_sde(folder: Path, size: int = 32, sde: str = "ve", continuous: bool = True, **changes: Any) -> Case:
    """A checkpoint of score SDE, stored after one step of the authors' optimiser."""
    their = score_sde_modules(folder)
    model = {**MODEL, **changes}
    config = types.SimpleNamespace(
        model=types.SimpleNamespace(**model),
        data=types.SimpleNamespace(image_size=size, num_channels=3, centered=sde != "ve"),
        training=types.SimpleNamespace(continuous=continuous),
    )
    kind = their.ddpm.DDPM if model["name"] == "ddpm" else their.ncsnpp.NCSNpp
    net = nn.DataParallel(kind(config)).eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=np.float64(2e-4))
    for p in net.parameters():
        p.grad = None
    shadow = their.ema.ExponentialMovingAverage(net.parameters(), decay=0.999)
    fill(net, ("sigmas",))
    shadow.shadow_params = [p.clone().detach() for p in net.parameters() if p.requires_grad]
    keys = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    process = their.sde_lib.VESDE(0.01, 50, 1000) if sde == "ve" else their.sde_lib.VPSDE(0.1, 20, 1000)
    answer = their.utils.get_score_fn(process, net, train=False, continuous=continuous)
    given = None if continuous else "VE(0.01, 50)"
    told = torch.tensor([0.3, 20.0] if sde == "ve" else [299.7, 899.1])

    def write(path: Path) -> Path:
        file = path / "checkpoint.pth"
        trained = {name: value + 1 for name, value in net.state_dict().items()}
        trained["module.sigmas"] = net.state_dict()["module.sigmas"]
        if "module.all_modules.0.W" in trained:
            trained["module.all_modules.0.W"] = net.state_dict()["module.all_modules.0.W"]
        state = dict(optimizer=optimizer.state_dict(), model=trained, ema=shadow.state_dict(), step=np.int64(7))
        torch.save(state, file)
        return file

    return Case(
        net,
        write,
        answer,
        lambda denoiser, x, t: denoiser(x, t).score,
        net,
        lambda inner, x, told: inner(x, told),
        told if continuous else torch.tensor([699, 99]),
        dict(times=[0.3, 0.9], shape=[2, 3, size, size], kind="score"),
        dict(format="score_sde", sde=sde, given=given, model=model, keys=keys),
    )


# -- EDM -----------------------------------------------------------------------------------------------------------


def edm(folder: Path, wrapper: str, size: int = 32, labels: int = 0, **options: Any) -> Case:
    """A network pickle of EDM, written as its training loop does."""
    sys.path.insert(0, str(folder / "edm"))
    import dnnlib
    from training import networks

    kind = getattr(networks, wrapper)
    net = kind(img_resolution=size, img_channels=3, label_dim=labels, **options).eval().requires_grad_(False)
    keys = fill(net.model, ("resample_filter",))

    def theirs(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x, sigma, class_labels=hot)

    def ours(denoiser: Any, x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, **(dict(labels=torch.tensor([1, 3])) if labels else {})).data

    def write(path: Path) -> Path:
        file = path / "network-snapshot.pkl"
        content = dict(ema=net, loss_fn=None, augment_pipe=None, dataset_kwargs=dnnlib.EasyDict(path="there"))
        with file.open("wb") as stream:
            pickle.dump(content, stream)
        return file

    hot = torch.eye(labels)[[1, 3]] if labels else None

    def raw(x: Tensor, told: Tensor) -> Tensor:
        return net.model(x, told, hot)[:, :3]

    def inner(mine: nn.Module, x: Tensor, told: Tensor) -> Tensor:
        return mine(x, told, torch.tensor([1, 3]) if labels else None)

    attributes = ("sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2")
    return Case(
        net.model,
        write,
        theirs,
        ours,
        raw,
        inner,
        torch.tensor([29.7, 899.1] if wrapper in ("VPPrecond", "iDDPMPrecond") else [-0.7, 0.6]),
        dict(times=[0.05, 11.0], shape=[2, 3, size, size], kind="data", labels=[1, 3] if labels else None),
        dict(
            format="edm",
            wrapper=wrapper,
            attributes={name: getattr(net, name) for name in attributes if hasattr(net, name)},
            network=type(net.model).__name__,
            options=json.loads(json.dumps(net.model.init_kwargs)),
            keys=keys,
        ),
    )


def edm2(folder: Path, size: int = 64, labels: int = 1000, **options: Any) -> Case:
    """A network pickle of EDM2, written as its training loop does but for the half precision."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("training", "torch_utils", "dnnlib")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder / "edm2"))
    from training import networks_edm2 as networks

    net = networks.Precond(img_resolution=size, img_channels=3, label_dim=labels, **options)
    net = net.eval().requires_grad_(False)
    keys = fill(net.unet)
    hot = torch.eye(labels)[[1, 3]] if labels else None
    classes = torch.tensor([1, 3]) if labels else None

    def write(path: Path) -> Path:
        file = path / "network-snapshot.pkl"
        with file.open("wb") as stream:
            pickle.dump(dict(ema=net, encoder=None, dataset_kwargs={}), stream)
        return file

    return Case(
        net.unet,
        write,
        lambda x, sigma: net(x, sigma, class_labels=hot),
        lambda denoiser, x, sigma: denoiser(x, sigma, labels=classes).data,
        lambda x, told: net.unet(x, told, hot),
        lambda mine, x, told: mine(x, told, classes),
        torch.tensor([-0.7, 0.6]),
        dict(times=[0.05, 11.0], shape=[2, 3, size, size], kind="data", labels=[1, 3] if labels else None),
        dict(
            format="edm",
            wrapper="Precond",
            attributes=dict(sigma_data=net.sigma_data),
            network="UNet",
            options=json.loads(json.dumps(net.unet.init_kwargs)),
            keys=keys,
        ),
    )


# -- diffusers -----------------------------------------------------------------------------------------------------


def diffusers(folder: Path, scheduler: str, size: int, scheduler_options: dict[str, Any], **options: Any) -> Case:
    """A pipeline's folder, written by diffusers."""
    del folder
    import diffusers as library

    net = library.UNet2DModel(sample_size=size, **options).eval()
    with torch.no_grad():
        keys = fill(net)
    schedule = getattr(library, scheduler)(**scheduler_options)
    exploding = scheduler == "ScoreSdeVeScheduler"
    classes = options.get("num_class_embeds")
    labels = torch.tensor([1, 3]) if classes else None

    def theirs(x: Tensor, t: Tensor) -> Tensor:
        told = 0.01 * (5000**t) if exploding else (1000 * t - 1).round()
        return net(x, told, class_labels=labels).sample[:, :3]

    def ours(denoiser: Any, x: Tensor, t: Tensor) -> Tensor:
        answer = denoiser(x, t.double(), **(dict(labels=labels) if classes else {}))
        return denoiser.parameterisation.write(answer)

    def write(path: Path) -> Path:
        net.save_pretrained(path / "unet")
        schedule.save_pretrained(path / "scheduler")
        index = {
            "_class_name": "DDPMPipeline",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", scheduler],
        }
        (path / "model_index.json").write_text(json.dumps(index))
        return path

    config = {k: v for k, v in json.loads(net.to_json_string()).items() if k != "_name_or_path"}
    return Case(
        net,
        write,
        theirs,
        ours,
        lambda x, told: net(x, told, class_labels=labels).sample[:, :3],
        lambda mine, x, told: mine(x, told, labels) if classes else mine(x, told),
        torch.tensor([0.3, 20.0] if exploding else [299.0, 899.0]),
        dict(times=[0.3, 0.9], shape=[2, 3, size, size], kind="output", labels=[1, 3] if classes else None),
        dict(
            format="diffusers",
            config=config,
            scheduler={k: v for k, v in json.loads(schedule.to_json_string()).items()},
            keys=keys,
        ),
    )


DDPM_32 = dict(
    block_out_channels=(128, 256, 256, 256),
    layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
)
NCSNPP_256 = dict(
    block_out_channels=(128, 128, 256, 256, 256, 256, 256),
    layers_per_block=2,
    down_block_types=("SkipDownBlock2D",) * 4 + ("AttnSkipDownBlock2D",) + ("SkipDownBlock2D",) * 2,
    up_block_types=("SkipUpBlock2D",) * 2 + ("AttnSkipUpBlock2D",) + ("SkipUpBlock2D",) * 4,
    attention_head_dim=None,
    time_embedding_type="fourier",
    center_input_sample=True,
    mid_block_scale_factor=2**0.5,
    norm_num_groups=None,
    norm_eps=1e-6,
)
CONSISTENCY = dict(
    block_out_channels=(64, 128),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    attn_norm_num_groups=32,
    attention_head_dim=64,
    num_class_embeds=10,
    out_channels=6,
)
SMALL_DDPM = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
SMALL_EDM = dict(model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
EDM_VP = dict(model_type="SongUNet", augment_dim=9, channel_mult=[2, 2, 2], dropout=0.13)
EDM_VE = dict(
    EDM_VP,
    embedding_type="fourier",
    encoder_type="residual",
    channel_mult_noise=2,
    resample_filter=[1, 3, 3, 1],
)

# Name -> (maker, arguments). Names that end in "full" are of published size.
CASES: dict[str, tuple[Callable[..., Case], dict[str, Any]]] = {
    "score_sde_ncsnpp_full": (score_sde, {}),
    "score_sde_ddpmpp_full": (score_sde, dict(sde="vp", **VP_MODEL)),
    "score_sde_ncsnpp_small": (score_sde, dict(size=16, **{**SMALL, "attn_resolutions": (8,)})),
    "score_sde_ddpmpp_small": (score_sde, dict(size=16, sde="vp", **{**SMALL, **VP_MODEL, "attn_resolutions": (8,)})),
    "score_sde_ddpm_small": (
        score_sde,
        dict(size=16, sde="vp", **{**SMALL, **VP_MODEL, "name": "ddpm", "attn_resolutions": (8,)}),
    ),
    "score_sde_discrete_small": (
        score_sde,
        dict(
            size=16,
            continuous=False,
            **{**SMALL, "embedding_type": "positional", "attn_resolutions": (8,)},
        ),
    ),
    "score_sde_skips_small": (score_sde, dict(size=16, **{**SMALL, **SKIPS, "ch_mult": (1, 2, 2)})),
    "score_sde_cat_small": (
        score_sde,
        dict(size=16, **{**SMALL, **SKIPS, "ch_mult": (1, 2, 2), "progressive_combine": "cat"}),
    ),
    "edm_vp_full": (edm, dict(wrapper="EDMPrecond", labels=10, **EDM_VP)),
    "edm_ve_full": (edm, dict(wrapper="EDMPrecond", **EDM_VE)),
    "edm_adm_full": (edm, dict(wrapper="EDMPrecond", size=64, labels=1000, model_type="DhariwalUNet")),
    "edm_vp_small": (edm, dict(wrapper="VPPrecond", size=16, labels=5, **{**EDM_VP, **SMALL_EDM})),
    "edm_ve_small": (edm, dict(wrapper="VEPrecond", size=16, **{**EDM_VE, **SMALL_EDM})),
    "edm_skip_small": (
        edm,
        dict(
            wrapper="EDMPrecond",
            size=16,
            **{**EDM_VE, **SMALL_EDM, "encoder_type": "skip", "decoder_type": "skip", "attn_resolutions": [16]},
        ),
    ),
    "edm_adm_small": (
        edm,
        dict(
            wrapper="iDDPMPrecond",
            size=16,
            labels=5,
            model_type="DhariwalUNet",
            **{**SMALL_EDM, "model_channels": 64, "attn_resolutions": [16, 8]},
        ),
    ),
    "edm2_full": (edm2, dict(model_channels=128)),
    "edm2_small": (
        edm2,
        dict(
            size=16,
            labels=5,
            model_channels=32,
            channel_mult=[1, 2],
            num_blocks=1,
            attn_resolutions=[8, 16],
            channels_per_head=16,
        ),
    ),
    "edm2_unconditional_small": (
        edm2,
        dict(
            size=16,
            labels=0,
            model_channels=32,
            channel_mult=[1, 2, 2],
            num_blocks=2,
            attn_resolutions=[8],
            channels_per_head=16,
            resample_filter=[1, 3, 3, 1],
            channel_mult_noise=1,
            channel_mult_emb=2,
        ),
    ),
    "diffusers_ddpm_full": (diffusers, dict(scheduler="DDPMScheduler", size=32, scheduler_options={}, **DDPM_32)),
    "diffusers_ncsnpp_full": (
        diffusers,
        dict(scheduler="ScoreSdeVeScheduler", size=64, scheduler_options=dict(sigma_max=50.0), **NCSNPP_256),
    ),
    "diffusers_ddpm_small": (
        diffusers,
        dict(
            scheduler="DDIMScheduler",
            size=16,
            scheduler_options=dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"),
            **SMALL_DDPM,
        ),
    ),
    "diffusers_skips_small": (
        diffusers,
        dict(
            scheduler="ScoreSdeVeScheduler",
            size=16,
            scheduler_options=dict(sigma_max=50.0),
            **{
                **NCSNPP_256,
                "block_out_channels": (32, 64, 128),
                "layers_per_block": 1,
                "down_block_types": ("SkipDownBlock2D",) * 2 + ("AttnSkipDownBlock2D",),
                "up_block_types": ("AttnSkipUpBlock2D",) + ("SkipUpBlock2D",) * 2,
            },
        ),
    ),
    "diffusers_scale_shift_small": (
        diffusers,
        dict(
            scheduler="DDPMScheduler",
            size=16,
            scheduler_options=dict(prediction_type="sample", variance_type="learned_range"),
            **CONSISTENCY,
        ),
    ),
}


SCORE_1024 = dict(
    SKIPS, nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, sigma_max=1348, num_scales=2000, dropout=0.0
)
# Too large to ask in a test: keys and shapes alone.
KEYS: dict[str, dict[str, Any]] = {
    "score_sde_ncsnpp_1024_keys": dict(size=1024, **SCORE_1024),
    "score_sde_ncsnpp_deep_keys": dict(num_res_blocks=8),
    "score_sde_ddpmpp_deep_keys": dict(sde="vp", **{**VP_MODEL, "num_res_blocks": 8}),
}


def list_keys(name: str, folder: Path) -> None:
    """Write the keys of a network of score SDE."""
    case = score_sde(folder, **KEYS[name])
    count = sum(p.numel() for p in case.net.parameters())
    (OUT / f"{name}.json").write_text(compact(dict(name=name, parameters=count, **case.about)))
    print(f"{name:32}{count:>12,} parameters", flush=True)


def measure(name: str, folder: Path) -> None:
    """Compare one case and write its fingerprint."""
    make, options = CASES[name]
    torch.manual_seed(0)
    with torch.no_grad():
        case = make(folder, **options)
        x, t = images(tuple(case.ask["shape"])), torch.tensor(case.ask["times"])
        theirs = case.theirs(x, t)
        with tempfile.TemporaryDirectory() as place:
            options = {"process": VE(0.01, 50.0)} if case.about.get("given") else {}
            denoiser = interop.load(case.write(Path(place)), **options)
        ours = case.ours(denoiser, x, t)
        inner = case.inner(denoiser.net, x, case.told)
        outer = case.raw(x, case.told)
    network, difference = relative(inner, outer), relative(ours, theirs)
    count = sum(p.numel() for p in case.net.parameters())
    said = dict(
        name=name,
        parameters=count,
        largest_difference_of_networks=float(f"{network:.2g}"),
        largest_difference=float(f"{difference:.2g}"),
        ask=case.ask,
        answer=[probe(y) for y in theirs],
        **case.about,
    )
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(compact(said))
    print(f"{name:32}{count:>12,} parameters, networks {network:.1e}, denoisers {difference:.1e}", flush=True)


def relative(y: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the deviation of each image."""
    return ((y - wanted) / wanted.std(dim=(1, 2, 3), keepdim=True)).abs().max().item()


def compact(said: dict[str, Any]) -> str:
    """JSON with one key, or one tensor, a line."""
    lines = []
    for key, value in said.items():
        if key == "keys":
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f'"keys": {{\n{inner}\n }}')
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


if __name__ == "__main__":
    for wanted in sys.argv[2:] or [*CASES, *KEYS]:
        (list_keys if wanted in KEYS else measure)(wanted, Path(sys.argv[1]).resolve())
