"""Every preset has the values of its source, trains, and uses its latent space."""

import json
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

# What each preset's source fixes of its network: latent shape and parameters. The hyperparameters
# are `published.py` itself, which is read beside the source; here is what they come to.
NETWORKS = {
    "chest_xray": ((64, 4, 4), 8_088_129),
    "sharp": ((1024,), 17_210_825),
    "medical256": ((8, 8, 8), 8_069_265),
    "celeba64_original": ((200,), 2_732_179),
    "celeba64_improved": ((512,), 42_664_323),
    "celeba256": ((1024,), 87_542_019),  # more than 50 M are named
    "fashion_mnist": ((32,), 466_017),
    "cifar10": ((256,), 5_949_635),
    "celeba64": ((256,), 10_674_371),
}
EPOCHS, LR = 36, 3e-3  # of the short training below, 4 steps an epoch


def on_paper(cfg):
    with torch.device("meta"):  # shapes without memory
        return vaekit.VAE(cfg)


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_every_preset_builds_the_network_of_its_source():
    assert NETWORKS.keys() == PRESETS.keys()
    for name, (shape, parameters) in NETWORKS.items():
        model = on_paper(vaekit.preset(name, profile="full"))
        assert (model.latent_shape, count(model)) == (shape, parameters), name


@pytest.mark.parametrize("profile", ["smoke", "quick"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_profile_only_ever_takes_away(name, profile):
    noted, cfg = vaekit.preset(name, profile="full"), vaekit.preset(name, profile=profile)
    for one in (noted, cfg):
        assert Config.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert cfg.image_size == min(noted.image_size, {"smoke": 32, "quick": 64}[profile])
    assert cfg.epochs_phase1 <= noted.epochs_phase1 and 0 < cfg.epochs_phase2
    assert cfg.num_epochs < noted.num_epochs and cfg.batch_size <= noted.batch_size
    assert all(a <= b for a, b in zip(cfg.widths, noted.widths, strict=False))
    assert cfg.image_size >= 2 ** len(cfg.widths) and len(cfg.widths) >= min(len(noted.widths), 3)
    assert set(cfg.attention) <= set(stage_sizes(cfg))
    loss = [key for key in cfg.to_dict() if key.endswith(("_weight", "_reduction"))]
    assert all(getattr(cfg, key) == getattr(noted, key) for key in (*loss, "beta", "free_bits"))
    steps = (cfg.epoch_images or cfg.max_images) / cfg.batch_size * cfg.num_epochs
    assert 6 <= steps < 4000


@pytest.mark.parametrize("dataset", ["images", "chest_xray", "celeba"])
def test_quick_is_quick_for_a_folder_of_any_size(dataset):
    for name in ("chest_xray", "sharp"):
        cfg = vaekit.preset(name, profile="quick", dataset=dataset, data_path="/nih/images")
        assert 0 < cfg.max_images <= 4000
        assert cfg.num_epochs * (cfg.epoch_images or cfg.max_images) <= 60_000


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """64 bundled films of 32 px, {channels: Data}."""
    cfg = Config(data_path=str(BUNDLE), image_size=32, max_images=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        grey = load_data(cfg, verbose=False).train.images
    parts = (grey, grey[:8], grey[:8])
    return {c: Data.from_tensors(*(x.expand(-1, c, -1, -1) for x in parts)) for c in (1, 3)}


def train(name, films, tmp_path, epochs=EPOCHS, **changes):
    """A narrow copy of a preset trained for `epochs` of 4 steps; all else is the preset's."""
    noted = vaekit.preset(name, profile="full")
    first = min(noted.epochs_phase1, epochs // 3)
    values = dict(epochs_phase1=first, epochs_phase2=epochs - first, batch_size=16, ema=0.0)
    values |= dict(lr_phase1=LR, lr_phase2=LR, features="none", sample_every=1000, early_stop=0)
    values["widths"] = tuple(min(w, 16) for w in vaekit.preset(name).widths)
    if noted.latent == "vector":
        values["latent_channels"] = 16
    cfg = vaekit.preset(name, **values | changes)
    run = vaekit.fit(cfg, films[cfg.in_channels], out=tmp_path, resume="never", verbose=False)
    mu = run.model.encode(films[cfg.in_channels].train.images / 255)[0]
    active = (mu.flatten(1).var(0) > 0.01).float().mean().item()
    return [row["train_loss"] for row in run.history], active


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_uses_its_latent_space(name, films, tmp_path):
    losses, active = train(name, films, tmp_path)
    assert all(torch.isfinite(torch.tensor(losses))) and losses[4] < losses[0]  # after 20 steps
    assert active > 0.1


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
TERMS = ("L1", "MSE", "SSIM", "perceptual", "LPIPS", "spectral", "band")


def presets_table() -> str:
    """All presets as a Markdown table, as the `full` profile trains them: for vaekit/PRESETS.md.

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
    shapes = ["×".join(map(str, shape)) for shape in (size, model.latent_shape)]
    epochs = f"{cfg.epochs_phase1} + {cfg.epochs_phase2}"
    reductions = f"{cfg.recon_reduction}/{cfg.kl_reduction}"
    parameters = f"{count(model) / 1e6:.1f} M"
    return [f"`{name}`", cfg.dataset, *shapes, parameters, loss, beta, reductions, epochs]


def test_a_ninth_preset_is_one_block(monkeypatch, films, tmp_path):
    ninth = dict(image_size=64, latent="vector", latent_channels=10, widths=(16, 32, 64))
    ninth |= dict(attention=(), perceptual_weight=0.0, beta=0.01, beta_warmup=10)
    ninth |= dict(epochs_phase1=0, epochs_phase2=20)
    monkeypatch.setitem(PRESETS, "ninth", ninth)
    cfg = vaekit.preset("ninth", batch_size=16)
    assert (cfg.preset, cfg.epochs_phase2, cfg.beta_warmup, cfg.image_size) == ("ninth", 2, 1, 32)
    assert Config.from_dict(cfg.to_dict()) == cfg
    run = vaekit.fit(cfg, films[1], out=tmp_path, verbose=False)
    assert run.finished and run.model.latent_shape == (10,)
    assert "| `ninth` | chest_xray | 64×64×1 | 10 | " in presets_table()


def test_the_table_of_presets_is_todays():
    page = (Path(vaekit.__file__).parent / "PRESETS.md").read_text()
    between = re.search(r"<!-- presets -->\n(.*?)\n<!-- /presets -->", page, re.S)
    assert between[1] == presets_table()
