"""Every preset is what its source gives, trains, and uses its latent space."""

import re
from pathlib import Path

import pytest
import torch

import vaekit
from vaekit.config import Config
from vaekit.data import Data, load_data
from vaekit.files.sources import BUNDLE
from vaekit.losses import beta_elbo, vae_loss
from vaekit.model import stage_sizes
from vaekit.presets import PRESETS

# What the sources list, preset by preset: (latent shape, parameters, hyperparameters).
# Only celeba256 lists parameters (more than 50 M); the other numbers keep the models as they are.
FACES = {"dataset": "celeba", "in_channels": 3, "latent": "vector", "fit": "crop"}
SUMS = {"recon_reduction": "sum", "kl_reduction": "sum", "mse_weight": 1.0, "l1_weight": 0.0,
        "ssim_weight": 0.0, "perceptual_weight": 0.0, "lr_phase2": 1e-3, "grad_clip": 0.1,
        "optimizer": "adam", "act_encoder": "leaky_relu", "act_decoder": "leaky_relu"}  # fmt: skip
EPOCHS, LR = 50, 3e-3  # of the short training below, 4 steps an epoch

NOTED = {
    "chest_xray": ((64, 4, 4), 8_088_129, {
        "image_size": 128, "in_channels": 1, "widths": (32, 64, 128, 256, 512), "stem_kernel": 7,
        "attention": (16,), "norm": "group", "act_encoder": "silu", "upsample": "bilinear",
        "l1_weight": 1.0, "perceptual_weight": 0.1, "ssim_weight": 0.5, "beta": 0.001,
        "beta_start": 0.0001, "beta_warmup": 50, "epochs_phase1": 50, "epochs_phase2": 100,
        "lr_phase1": 1e-4, "lr_phase2": 5e-5, "lr_schedule_phase1": "cosine_restarts",
        "lr_schedule_phase2": "plateau", "optimizer": "adamw", "weight_decay": 1e-5,
        "grad_clip": 1.0, "batch_size": 32, "clahe_clip": 2.0, "clahe_tiles": 8, "flip": True,
        "sample_every": 10,
    }),
    "medical256": ((8, 8, 8), 8_069_265, {
        "image_size": 256, "in_channels": 1, "norm": "batch", "norm_skip": True,
        "shortcut": "conv", "init": "kaiming", "latent_init_gain": 0.01, "logvar_clamp": 10.0,
        "upsample": "bilinear", "convs_per_up": 2, "act_decoder": "leaky_relu",
        "attention": (16,), "l1_weight": 1.0, "num_scales": 3, "spectral_weight": 0.1,
        "beta": 0.5, "beta_start": 0.0, "beta_warmup": 40, "free_bits": 0.05,
        "free_bits_kind": "element", "recon_reduction": "mean", "kl_reduction": "mean",
        "grad_clip": 1.0, "epochs_phase1": 0,
    }),
    "celeba64_original": ((200,), 2_732_179, FACES | {
        "image_size": 64, "widths": (128,) * 4, "mse_weight": 1.0, "l1_weight": 0.0,
        "ssim_weight": 0.0, "perceptual_weight": 0.0, "recon_weight": 2000.0, "beta": 1.0,
        "lr_phase2": 5e-4, "epochs_phase1": 0, "epochs_phase2": 50, "logvar_clamp": 15.0,
    }),
    "celeba64_improved": ((512,), 42_664_323, FACES | {
        "image_size": 64, "widths": (128, 256, 512, 1024), "act_encoder": "leaky_relu",
        "mse_weight": 0.8, "l1_weight": 0.2, "perceptual_weight": 0.1 / 12288,
        "perceptual_distance": "squared", "recon_weight": 1.0, "beta": 1.0, "lr_phase2": 1e-4,
        "lr_schedule_phase2": "plateau", "epochs_phase1": 0, "epochs_phase2": 100,
        "logvar_clamp": 15.0,
    }),
    "celeba256": ((1024,), 87_542_019, FACES | {
        "image_size": 256, "mse_weight": 0.4, "l1_weight": 0.2, "perceptual_weight": 0.2,
        "lpips_weight": 0.2, "epochs_phase1": 0, "epochs_phase2": 200, "batch_size": 64,
        "lr_phase2": 5e-5, "optimizer": "adam", "weight_decay": 1e-5,
        "lr_schedule_phase2": "plateau", "plateau_patience": 10, "early_stop": 20,
        "grad_clip": 1.0, "beta_schedule": "adaptive_cyclical", "cycle_epochs": 8,
        "cycle_cooldown": 2, "cycle_reduction": 0.25, "beta_floor": 5e-5,
        "beta_floor_growth": 1.02, "sample_every": 10,
    }),
    "fashion_mnist": ((32,), 466_017, SUMS | {
        "dataset": "fashion_mnist", "image_size": 32, "in_channels": 1, "widths": (32, 64),
        "beta": 0.8, "beta_schedule": "constant", "epochs_phase1": 0,
    }),
    "cifar10": ((256,), 5_949_635, SUMS | {
        "dataset": "cifar10", "image_size": 32, "in_channels": 3, "widths": (64, 128, 256, 512),
        "beta": 0.1, "beta_schedule": "constant", "epochs_phase1": 15,
    }),
    "celeba64": ((256,), 10_674_371, SUMS | FACES | {
        "image_size": 64, "widths": (64, 128, 256, 512), "crop": 140 / 178, "beta": 0.9,
        "beta_schedule": "warmup", "beta_warmup": 2, "beta_start": 0.0, "epochs_phase1": 0,
    }),
}  # fmt: skip


def on_paper(cfg):
    with torch.device("meta"):  # shapes without memory
        return vaekit.VAE(cfg)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_the_table_below_lists_every_preset():
    assert NOTED.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", NOTED)
def test_a_preset_is_its_source_in_full(name):
    shape, parameters, noted = NOTED[name]
    cfg = vaekit.preset(name, profile="full")
    assert {key: getattr(cfg, key) for key in noted} == noted
    model = on_paper(cfg)
    assert model.latent_shape == shape and count(model) == parameters
    assert name != "celeba256" or parameters > 50e6


def test_parameters_by_hand():
    encoder = 9 * 32 + 32 + 64 + 9 * 32 * 64 + 64 + 128 + 2 * (64 * 8 * 8 * 32 + 32)
    decoder = 32 * 4096 + 4096 + 16 * 64 * 32 + 32 + 64 + 16 * 32 * 32 + 32
    image = 64 + 9 * 32 + 1
    assert count(on_paper(vaekit.preset("fashion_mnist"))) == encoder + decoder + image


@pytest.mark.parametrize("profile", ["smoke", "quick"])
@pytest.mark.parametrize("name", NOTED)
def test_a_profile_only_ever_takes_away(name, profile):
    noted, cfg = vaekit.preset(name, profile="full"), vaekit.preset(name, profile=profile)
    assert cfg.image_size == min(noted.image_size, {"smoke": 32, "quick": 64}[profile])
    assert cfg.epochs_phase1 <= noted.epochs_phase1 and 0 < cfg.epochs_phase2
    assert cfg.num_epochs < noted.num_epochs and cfg.batch_size <= noted.batch_size
    assert all(a <= b for a, b in zip(cfg.widths, noted.widths, strict=False))
    assert cfg.image_size >= 2 ** len(cfg.widths) and len(cfg.widths) >= min(len(noted.widths), 5)
    assert set(cfg.attention) <= set(stage_sizes(cfg))
    loss = [key for key in cfg.to_dict() if key.endswith(("_weight", "_reduction"))]
    assert all(getattr(cfg, key) == getattr(noted, key) for key in (*loss, "beta", "free_bits"))
    steps = (cfg.max_images or 300) / cfg.batch_size * cfg.num_epochs  # 300 bundled films
    assert 6 <= steps < 4000


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """64 bundled films of 32 px, {channels: Data}."""
    cfg = Config(data_path=str(BUNDLE), image_size=32, max_images=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        grey = load_data(cfg, verbose=False).train.images
    return {c: Data.from_tensors(*(x.expand(-1, c, -1, -1) for x in (grey, grey[:8], grey[:8])))
            for c in (1, 3)}  # fmt: skip


def train(name, films, tmp_path, epochs=EPOCHS, **changes):
    """A narrow copy of a preset trained for `epochs` of 4 steps; all else is the preset's."""
    noted = vaekit.preset(name, profile="full")
    first = min(noted.epochs_phase1, epochs // 3)
    small = {"widths": tuple(min(w, 16) for w in vaekit.preset(name).widths)}
    small |= {"latent_channels": 16} if noted.latent == "vector" else {}
    cfg = vaekit.preset(name, **{
        **small, "epochs_phase1": first, "epochs_phase2": epochs - first, "batch_size": 16,
        "lr_phase1": LR, "lr_phase2": LR, "ema": 0.0, "features": "none", "sample_every": 1000,
        "early_stop": 0, **changes,
    })  # fmt: skip
    run = vaekit.fit(cfg, films[cfg.in_channels], out=tmp_path, resume="never", verbose=False)
    mu = run.model.encode(films[cfg.in_channels].train.images / 255)[0]
    active = (mu.flatten(1).var(0) > 0.01).float().mean().item()
    return [row["train_loss"] for row in run.history], active


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_uses_its_latent_space(name, films, tmp_path):
    losses, active = train(name, films, tmp_path)
    assert all(torch.isfinite(torch.tensor(losses))) and losses[4] < losses[0]  # after 20 steps
    assert active > 0.1


def test_a_collapsed_preset_would_not_pass(films, tmp_path):
    _, active = train("celeba64_improved", films, tmp_path, recon_reduction="mean")
    assert active < 0.1


def test_what_the_weights_of_2000_and_1_mean():
    """The multiple of the ELBO's own KL weight at mean |e| = 0.07, mean e^2 = 0.01."""

    def elbo(name, **changes):
        cfg = vaekit.preset(name, profile="full", **changes)
        return beta_elbo(cfg, cfg.beta, 0.07, 0.01, 12288, cfg.latent_channels)

    assert elbo("celeba64_original") == pytest.approx(12288 / (2000 * 0.02))  # 307
    assert elbo("celeba64_improved") == pytest.approx(1 / 0.03)  # 33: a ninth of the pressure
    mean = {"recon_reduction": "mean"}
    assert elbo("celeba64_improved", **mean) == pytest.approx(12288 / 0.03)  # beyond collapse
    assert elbo("celeba64_improved", **mean, kl_reduction="mean") == pytest.approx(24 / 0.03)
    assert elbo("celeba64_original", recon_reduction="sum") == pytest.approx(0.025)  # no VAE left


def test_a_weight_of_4_is_the_published_beta_on_our_pixels():
    torch.manual_seed(0)
    x, x_hat = torch.rand(2, 4, 1, 32, 32)
    mu, logvar = torch.randn(2, 4, 32)
    cfg = vaekit.preset("fashion_mnist")
    published = (2 * (x_hat - x)).square().sum() / 4  # pixels in [-1, 1], mean over 4 images
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / 4
    ours = vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta).total
    torch.testing.assert_close(ours, published + 0.8 * kl)
    plain = vae_loss(x_hat, x, mu, logvar, cfg.replace(recon_weight=1.0), 0.2).total
    torch.testing.assert_close(ours, 4 * plain)


COLUMNS = ("preset", "data", "size", "latent", "parameters", "loss", "β", "reductions", "epochs")
TERMS = ("L1", "MSE", "SSIM", "perceptual", "LPIPS", "spectral")


def presets_table() -> str:
    """All presets as a Markdown table, as the `full` profile trains them: for README.md.

    "reductions" are the reconstruction's and the KL's, "epochs" those of phase 1 + phase 2.
    """
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(table_row, PRESETS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def table_row(name: str) -> list[str]:
    cfg = vaekit.preset(name, profile="full")
    model = on_paper(cfg)
    weights = {term: getattr(cfg, f"{term.lower()}_weight") for term in TERMS}
    loss = " + ".join(f"{weight:.3g} {term}" for term, weight in weights.items() if weight)
    loss = f"{cfg.recon_weight:g} ({loss})" if cfg.recon_weight != 1 else loss
    beta = f"{cfg.beta:g}"
    if cfg.beta_schedule == "warmup":
        beta = f"{cfg.beta_start:g} → {beta} over {cfg.beta_warmup} epochs"
    elif cfg.beta_schedule != "constant":
        beta += f", {cfg.beta_schedule.replace('_', ' and ')}"
    size = cfg.image_size, cfg.image_size, cfg.in_channels
    return [
        f"`{name}`", cfg.dataset, "×".join(map(str, size)), "×".join(map(str, model.latent_shape)),
        f"{count(model) / 1e6:.1f} M", loss, beta, f"{cfg.recon_reduction}/{cfg.kl_reduction}",
        f"{cfg.epochs_phase1} + {cfg.epochs_phase2}",
    ]  # fmt: skip


def test_a_ninth_preset_is_one_block(monkeypatch, films, tmp_path):
    ninth = {
        "image_size": 64, "latent": "vector", "latent_channels": 10, "widths": (16, 32, 64),
        "attention": (), "perceptual_weight": 0.0, "beta": 0.01,
        "epochs_phase1": 0, "epochs_phase2": 20, "beta_warmup": 10,
    }  # fmt: skip
    monkeypatch.setitem(PRESETS, "ninth", ninth)
    cfg = vaekit.preset("ninth", batch_size=16)
    assert (cfg.preset, cfg.epochs_phase2, cfg.beta_warmup, cfg.image_size) == ("ninth", 2, 1, 32)
    assert Config.from_dict(cfg.to_dict()) == cfg
    run = vaekit.fit(cfg, films[1], out=tmp_path, verbose=False)
    assert run.finished and run.model.latent_shape == (10,)
    assert "| `ninth` | chest_xray | 64×64×1 | 10 | " in presets_table()


def test_the_readmes_table_is_todays():
    readme = (Path(vaekit.__file__).parent.parent / "README.md").read_text()
    between = re.search(r"<!-- presets -->\n(.*?)\n<!-- /presets -->", readme, re.S)
    assert between[1] == presets_table()
