"""The training loop: phases, schedules, the order of an epoch, and the same loop by hand."""

import math

import pytest
import torch
from tiny import small, weights

import vaekit
from vaekit import train
from vaekit.data import batches
from vaekit.losses import kl_share, vae_loss
from vaekit.place import device
from vaekit.schedules import BetaBand


def test_both_phases_run_and_the_loss_falls(data):
    run = vaekit.fit(small(epochs_phase1=4, epochs_phase2=4), data)
    assert run.finished and [r["phase"] for r in run.history] == [1] * 4 + [2] * 4
    assert run.history[3]["train_l1"] < run.history[0]["train_l1"]
    assert [r["beta"] for r in run.history[:4]] == [0, 0, 0, 0]
    assert run.history[-1]["beta"] == run.cfg.beta
    assert all(r["beta_elbo"] >= 0 and r["train_grad_norm"] > 0 for r in run.history)
    assert not run.model.training


def test_the_bare_loop_trains_what_fit_trains(data, tmp_path):
    cfg = small(beta_schedule="adaptive_cyclical", lr_schedule_phase2="plateau", norm="batch")
    run = vaekit.fit(cfg, data, out=tmp_path)
    trainer = train.Trainer(run.cfg, data)
    rows = []
    train.train(trainer, lambda trainer, row: rows.append(row))
    last = torch.load(run.path / "last.pt", weights_only=True)
    assert all(torch.equal(v, last["model"][k]) for k, v in trainer.raw.state_dict().items())
    assert all(torch.equal(v, last["ema"][k]) for k, v in trainer.ema.state_dict().items())
    assert rows == trainer.history
    assert [{k: r[k] for k in rows[0]} for r in run.history] == rows  # fit's have seconds as well


@pytest.mark.parametrize("beta", [1.0, 1e-4], ids=["from above", "from below"])
def test_adaptive_beta_settles_in_its_band(data, beta):
    cfg = small(
        beta_schedule="adaptive",
        beta=beta,
        epochs_phase2=32,
        lr_phase2=2e-3,
        lr_schedule_phase2="cosine",
    )
    history = vaekit.fit(cfg, data).history
    assert not 0.02 <= history[2]["kl_share"] <= 0.10
    assert all(0.02 <= row["kl_share"] <= 0.10 for row in history[-4:])
    assert len({row["beta"] for row in history[-4:]}) == 1 and history[-1]["beta_elbo"] < 1


def test_cycles_are_trained_and_logged(data):
    cfg = small(beta_schedule="cyclical", cycle_epochs=3, cycle_cooldown=1, epochs_phase2=6)
    run = vaekit.fit(cfg, data)
    quarter = pytest.approx(run.cfg.beta / 4)
    assert [r["beta"] for r in run.history[2:]] == [quarter, run.cfg.beta, run.cfg.beta] * 2


def test_a_cooldown_does_not_move_the_band(data):
    trainer = train.Trainer(small(beta_schedule="adaptive_cyclical", epochs_phase1=0), data)
    trainer.beta = 0.25 * trainer.band.level  # of the cooldown
    row = dict(train_recon=0.1, train_kl=100.0, train_l1=0.1, train_mse=0.02, val_loss=0.1)
    share = kl_share(trainer.cfg, trainer.band.level, 0.1, 100.0, *trainer.sizes)
    expected = BetaBand(trainer.cfg).step(share)
    trainer.adapt(row)
    assert trainer.band.level == pytest.approx(expected) != trainer.cfg.beta


def test_phase_2_begins_with_codes_as_wide_as_the_prior(data):
    spreads, pictures = [], []
    for rescale in (False, True):
        run = vaekit.fit(small(rescale_latents=rescale, lr_phase2=1e-6), data)
        mu, _ = run.model.encode(data.train.images / 255)
        spreads.append(mu.square().mean().sqrt())
        pictures.append(run.model.reconstruct(data.val.images / 255))
    assert abs(spreads[1] - 1) < 0.05 < abs(spreads[0] - 1)
    # the units change, the pictures do not
    torch.testing.assert_close(*pictures, atol=1e-2, rtol=0)


def test_phase_2_begins_with_a_fresh_optimizer_and_plateau(data):
    trainer = train.Trainer(small(lr_schedule_phase1="plateau", plateau_patience=0), data)
    trainer.run_epoch()
    trainer.plateau.scale = 0.25
    before = trainer.optimizer
    trainer.run_epoch()
    assert trainer.optimizer is before and trainer.phase == 2 and trainer.plateau.scale == 1
    trainer.run_epoch()
    assert trainer.optimizer is not before
    trainer.begin_phase2()
    assert not trainer.ema.encoder.logvar.weight.any()  # the averages change their units too


def test_same_seed_same_weights_other_seed_other_weights(data):
    a, b = (vaekit.fit(small(), data, resume="never") for _ in range(2))
    assert torch.equal(weights(a), weights(b)) and a.path != b.path
    assert not torch.equal(weights(a), weights(vaekit.fit(small(seed=1), data)))


def test_every_epoch_has_its_own_noise(data, monkeypatch):
    monkeypatch.setattr(train.Trainer, "step", lambda *_: {"loss": torch.rand(())})
    trainer = train.Trainer(small(), data)
    first, again = (trainer.train_epoch() for _ in range(2))
    trainer.epoch = 1
    assert first == again != trainer.train_epoch()


def test_fit_leaves_the_callers_random_numbers_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    vaekit.fit(small(), data)
    assert torch.equal(torch.rand(3), expected)


def test_loop_by_hand_equals_fit(data):
    cfg = small(epochs_phase1=0, epochs_phase2=1, batch_size=20, ema=0.0)
    run = vaekit.fit(cfg, data)
    model = train.Trainer(cfg, data).raw.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=cfg.weight_decay)
    order, flip = train.epoch_order(cfg, 40, epoch=0)
    torch.manual_seed(cfg.seed * 1_000_003 * 64)
    for step in range(2):
        rows = slice(20 * step, 20 * step + 20)
        x = data.train.images[order[rows]].float() / 255
        x = torch.where(flip[rows].view(-1, 1, 1, 1), x.flip(-1), x)
        x = x.contiguous(memory_format=torch.channels_last)
        x_hat, mu, logvar = model(x)
        optimizer.param_groups[0]["lr"] = cfg.lr_phase2
        optimizer.zero_grad()
        vae_loss(x_hat, x, mu, logvar, cfg, cfg.beta).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
    by_hand = torch.cat([p.flatten() for p in model.parameters()])
    torch.testing.assert_close(by_hand, weights(run), atol=1e-6, rtol=1e-4)


def test_validation_is_of_the_averaged_weights_at_the_final_beta_without_free_bits(data):
    cfg = small(epochs_phase1=0, free_bits=1.0, beta=0.5, beta_start=0.0, ema=0.9)
    trainer = train.Trainer(cfg, data)
    row = trainer.run_epoch()
    x = data.val.images.float() / 255
    noise = torch.Generator().manual_seed(cfg.seed)
    eps = torch.cat([torch.randn(n, *trainer.ema.latent_shape, generator=noise) for n in (8, 4)])
    with torch.no_grad():
        mu, logvar = trainer.ema.encode(x)
        x_hat = trainer.ema.decode(mu + (0.5 * logvar).exp() * eps)
    loss = vae_loss(x_hat, x, mu, logvar, cfg.replace(free_bits=0.0), cfg.beta)
    for name, value in loss.terms.items():
        assert row[f"val_{name}"] == pytest.approx(value.item(), rel=1e-4), name
    assert row["val_psnr"] == pytest.approx(-10 * math.log10(row["val_mse"]))
    again = trainer.validate()  # with the noise of every epoch
    assert {f"val_{name}": value for name, value in again.items()}.items() <= row.items()


def test_psnr_of_validation_is_that_of_whole_images(data):
    one, two = (train.Trainer(small(num_scales=scales), data).validate() for scales in (1, 2))
    assert two["psnr"] == one["psnr"] and two["mse"] == one["mse"]
    assert two["l1"] < one["l1"]  # a mean over the resolutions


def test_validation_takes_no_more_images_than_it_says(data, monkeypatch):
    monkeypatch.setattr(train, "VALIDATED", 3)
    seen = []
    monkeypatch.setattr(train, "batches", lambda *args, **_: seen.append(args) or batches(*args))
    trainer = train.Trainer(small(), data)
    values = trainer.validate()
    assert seen[0][3].tolist() == [0, 6, 11] and math.isfinite(values["loss"])
    x = data.val.images[[0, 6, 11]] / 255  # in phase 1 from the mean
    mse = (trainer.ema.reconstruct(x) - x).square().mean().item()
    assert values["mse"] == pytest.approx(mse, rel=1e-4)


def test_epoch_order_is_shared_out_without_overlap():
    cfg = small(batch_size=8)
    order, flip = train.epoch_order(cfg, 40, epoch=3)
    assert sorted(order.tolist()) == list(range(40)) and 5 < flip.sum() < 35
    parts = [train.epoch_order(cfg, 40, 3, rank, 2)[0].view(-1, 4) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts, 1), order.view(-1, 8))
    assert not torch.equal(order, train.epoch_order(cfg, 40, epoch=4)[0])
    assert len(train.epoch_order(cfg, 41, 0)[0]) == 40 and len(train.epoch_order(cfg, 5, 0)[0]) == 5


def test_an_epoch_may_be_a_part_of_the_images():
    cfg = small(batch_size=8, epoch_images=20)
    orders = [train.epoch_order(cfg, 40, epoch)[0].tolist() for epoch in range(16)]
    assert all(len(set(order)) == 16 for order in orders) and set().union(*orders) == set(range(40))
    assert len(train.epoch_order(cfg.replace(epoch_images=3), 40, 0)[0]) == 8  # one batch at least


def test_shifts_reach_as_far_as_asked_and_differ_from_epoch_to_epoch(data):
    cfg = small(shift=2, epochs_phase1=0, epochs_phase2=1)
    first, second = (train.epoch_shifts(cfg, 200, epoch) for epoch in (0, 1))
    assert first.unique().tolist() == [-2, -1, 0, 1, 2] and not torch.equal(first, second)
    moved, still = (vaekit.fit(c, data, resume="never") for c in (cfg, cfg.replace(shift=0)))
    assert not torch.equal(weights(moved), weights(still))


def test_averages_move_by_their_decay_and_copy_statistics(data):
    trainer = train.Trainer(small(norm="batch"), data)
    with torch.no_grad():
        for p in trainer.raw.parameters():
            p.fill_(2.0)
        for p in trainer.ema.parameters():
            p.fill_(1.0)
    mean = next(b for name, b in trainer.raw.named_buffers() if name.endswith("running_mean"))
    mean.fill_(3.0)
    train.update_ema(trainer.ema, trainer.raw, 0.75)
    assert all((p == 1.25).all() for p in trainer.ema.parameters())
    kept = next(b for name, b in trainer.ema.named_buffers() if name.endswith("running_mean"))
    assert (kept == 3).all()


@pytest.mark.parametrize(("torch_has", "expected"), [("AVX512", True), ("AVX2", False)])
def test_bf16_on_a_cpu_can_be_forbidden_to_torch(monkeypatch, tmp_path, torch_has, expected):
    info = tmp_path / "cpuinfo"
    info.write_text("flags : avx2 avx512_bf16")
    monkeypatch.setattr(device, "Path", lambda name: info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: torch_has)
    assert device.cpu_has_bf16() == expected


@pytest.mark.parametrize(
    ("kind", "bf16", "capability", "expected"),
    [
        ("cpu", True, None, "bf16"),
        ("cpu", False, None, "fp32"),
        ("cuda", False, (8, 0), "bf16"),
        ("cuda", False, (7, 5), "fp16"),
        ("mps", False, None, "fp32"),
    ],
)
def test_native_precision(monkeypatch, kind, bf16, capability, expected):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.choose_precision("auto", torch.device(kind)) == expected
    assert device.choose_precision("fp32", torch.device(kind)) == "fp32"
