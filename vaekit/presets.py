"""The systems as values, and what each profile changes.

`chest_xray`, a published system, is the defaults of `Config`; the other presets list where they
differ from it.
"""

from vaekit.published import PUBLISHED

PRESETS = {
    "chest_xray": {},
    # Ours. The code starts as that of the best linear VAE, with the prior's mean and scale. So
    # there is one phase and nothing to rescale; the network learns what linear reconstructions
    # lack.
    "sharp": dict(start="linear", latent="vector", latent_channels=1024, rescale_latents=False)
    | dict(widths=(48, 96, 192, 192), shortcut="conv", attention=(), shift=2)
    | dict(band_weight=1.0, critic_share=0.5)
    | dict(beta_schedule="constant", beta_start=0.0, beta_warmup=0)
    | dict(epochs_phase1=0, epochs_phase2=100, batch_size=8, optimizer="adam", weight_decay=0.0)
    | dict(lr_phase2=1e-3, lr_schedule_phase2="cosine", lr_warmup=0.02),
} | PUBLISHED

# What each profile changes to make a run shorter, and the rates that suit a short run. `full`
# changes nothing.
PROFILE_CHANGES = {
    "smoke": dict(image_size=32, epochs_phase1=1, epochs_phase2=2, batch_size=8, max_images=24)
    | dict(lr_phase1=1e-3, lr_phase2=1e-3, sample_every=1),
    # a short run needs large steps, and weights averaged over fewer of them
    "quick": dict(image_size=64, epochs_phase1=4, epochs_phase2=10, batch_size=8, ema=0.99)
    | dict(max_images=4000, epoch_images=320)
    | dict(lr_phase1=2e-3, lr_phase2=2e-3, lr_warmup=0.02)
    | dict(lr_schedule_phase1="constant", lr_schedule_phase2="cosine"),
    "full": {},
}
# ... and for every data set but chest_xray: larger batches, longer epochs (not for sharp, see
# below), and the most channels that a stage of the preset keeps (`max_width`).
OTHER_SETS = {
    "smoke": dict(max_width=64),
    "quick": dict(epoch_images=0, epochs_phase1=5, epochs_phase2=10, batch_size=32)
    | dict(lr_phase1=1e-3, lr_phase2=1e-3, max_width=64),
    "full": {},
}
# ... and for single presets. chest_xray: half as wide. sharp: a third as wide and one stage fewer,
# so that the last map stays 8x8; 256 numbers for 64x64 are 16 pixels each, as 1,024 for 128x128.
PRESET_CHANGES = {
    ("sharp", "smoke"): dict(latent_channels=16, widths=(8, 16, 16)),
    ("chest_xray", "quick"): dict(widths=(16, 32, 64, 128, 256)),
    ("sharp", "quick"): dict(latent_channels=256, widths=(16, 32, 64), epochs_phase2=20)
    | dict(lr_phase2=1e-3, epoch_images=320),
}
# A profile never raises these above the preset's value.
AT_MOST = {"image_size", "batch_size", "epochs_phase1", "epochs_phase2"}
# Durations in epochs keep their share of the run, but stay at least this long.
DURATIONS = dict(beta_warmup=0, sample_every=1, early_stop=0)
DURATIONS |= dict(plateau_patience=1, cycle_epochs=2, cycle_cooldown=1)
