"""The runs of `sweep.py`: for each sweep a preset, changes that all its runs share, and the cases.

A case is a change of config values on top of those. "select": "recon" keeps the weights of the
epoch with the best reconstruction; the default is the best ELBO. "judged": most validation and
test images, where a data set has thousands. "five": cases with five seeds instead of `seeds`.
"pictured": cases whose pictures are stored because a notebook shows them; each makes the file
larger. "brief": no curves and no spectra.
"""

# The system of the preset `medical256` at a quarter of its side, with three halvings instead of
# five so that its latent stays 8 x 8 x 8; a high rate that falls makes 40 epochs enough.
CLINIC = {
    "profile": "full", "image_size": 64, "widths": (16, 32, 64), "batch_size": 16,
    "epochs_phase2": 40, "beta_warmup": 16, "lr_phase2": 2e-3, "lr_schedule_phase2": "cosine",
    "lr_warmup": 0.02, "ema": 0.99, "sample_every": 40,
}  # fmt: skip
# The chest X-ray system at half its side, with four halvings instead of five and half the channels,
# so that its latent stays 4 x 4 x 64; small batches and a high rate make 30 epochs enough.
OPTIMISED = {
    "profile": "full", "image_size": 64, "widths": (16, 32, 64, 128), "features": "squeezenet",
    "batch_size": 8, "epochs_phase1": 8, "epochs_phase2": 22, "beta_warmup": 8,
    "lr_phase1": 2e-3, "lr_phase2": 2e-3, "lr_schedule_phase1": "constant",
    "lr_schedule_phase2": "cosine", "lr_warmup": 0.02, "ema": 0.99, "sample_every": 30,
}  # fmt: skip
# The described original: its eight changes undone, each row as it was, and as it became
ONE_PHASE = {"epochs_phase1": 0, "epochs_phase2": 30, "beta_schedule": "constant", "beta_warmup": 0}
TWO_PHASES = {"epochs_phase1": 8, "epochs_phase2": 22, "beta_schedule": "warmup", "beta_warmup": 8}
BEFORE = {
    "latent": {"latent": "vector", "latent_channels": 256},
    "activation": {"act_encoder": "leaky_relu", "act_decoder": "leaky_relu"},
    "normalisation": {"norm": "batch"},
    "loss": {"l1_weight": 0.0, "mse_weight": 1.0, "ssim_weight": 0.0, "perceptual_weight": 0.0},
    "beta": {"beta": 0.5},
    "phases": ONE_PHASE,
    "upsampling": {"upsample": "transposed"},
    "attention": {"attention": ()},
}  # fmt: skip
AFTER = {
    "latent": {"latent": "spatial", "latent_channels": 64},
    "activation": {"act_encoder": "silu", "act_decoder": "silu"},
    "normalisation": {"norm": "group"},
    "loss": {"l1_weight": 1.0, "mse_weight": 0.0, "ssim_weight": 0.5, "perceptual_weight": 0.1},
    "beta": {"beta": 0.001},
    "phases": TWO_PHASES,
    "upsampling": {"upsample": "bilinear"},
    "attention": {"attention": (16,)},
}  # fmt: skip
ORIGINAL = {key: value for row in BEFORE.values() for key, value in row.items()}
LOW = ORIGINAL | AFTER["beta"]  # the original with the change that the others need to show
L1 = {"l1_weight": 1.0, "mse_weight": 0.0}
SHARP = {
    "original": ORIGINAL,
    **{f"original, new {row}": ORIGINAL | new for row, new in AFTER.items() if row != "beta"},
    "low beta": LOW,
    **{f"low beta, new {row}": LOW | new for row, new in AFTER.items() if row != "beta"},
    "low beta, L1": LOW | L1,
    "low beta, a fifth L1": LOW | {"l1_weight": 0.2, "mse_weight": 0.8},
    "low beta, L1 + SSIM": LOW | L1 | {"ssim_weight": 0.5},
    "low beta, L1 + SSIM + features + LPIPS": LOW | AFTER["loss"] | {"lpips_weight": 0.1},
    "low beta, 16 channels of 4 x 4": LOW | {"latent": "spatial", "latent_channels": 16},
    "low beta, flat 512": LOW | {"latent_channels": 512},
    "low beta, twice the channels": LOW | {"widths": (32, 64, 128, 256)},
    "low beta, quarter of the rate": LOW | {"lr_phase1": 5e-4, "lr_phase2": 5e-4},
    "low beta, five times the rate": LOW | {"lr_phase1": 1e-2, "lr_phase2": 1e-2},
    "low beta, twice as long": LOW | {"epochs_phase2": 60},
    "low beta, CLAHE off": LOW | {"clahe_clip": 0.0},
    "low beta, batch 2": LOW | {"batch_size": 2},
    "low beta, batch 2, new both": LOW | AFTER["activation"] | AFTER["normalisation"] | {
        "batch_size": 2},
    "optimised": {},
    **{f"optimised, old {row}": old for row, old in BEFORE.items()},
    "optimised, flat 1024": {"latent": "vector", "latent_channels": 1024},
    "optimised, old activation and normalisation": BEFORE["activation"] | BEFORE["normalisation"],
    "optimised, no features": {"perceptual_weight": 0.0},
    "optimised + spectral": {"spectral_weight": 0.1},
    "optimised + LPIPS": {"lpips_weight": 0.1},
    "optimised, beta 0.0005": {"beta": 0.0005},
    "optimised, beta 0.01": {"beta": 0.01},
}  # fmt: skip
# what the claims of notebook 09 compare, on real films: as many steps as on the drawn ones
ON_FILMS = (
    "original", "low beta", "low beta, L1", "low beta, twice the channels",
    "low beta, twice as long", "low beta, CLAHE off", "low beta, batch 2",
    "low beta, batch 2, new both", "optimised", "optimised, old phases",
    "optimised, old upsampling", "optimised, old attention", "optimised, old beta",
    "optimised, flat 1024", "optimised, no features", "optimised, beta 0.0005",
)  # fmt: skip
# the two tables of eight rows that answer the question have five seeds, all else three
FIVE = ["original", "low beta", *(f"low beta, new {row}" for row in AFTER if row != "beta"),
        "optimised", *(f"optimised, old {row}" for row in BEFORE)]  # fmt: skip
# The preset, except for its length: 10 epochs of 2,500 pictures, 25,000 in all; small batches, so
# that there are enough steps.
STATIC = (0.01, 0.05, 0.2, 0.8, 3.0, 12.0, 50.0)
FASHION = {
    "profile": "full", "max_images": 2500, "batch_size": 32, "epochs_phase2": 10,
    "sample_every": 10,
}  # fmt: skip
BETA = {
    **{f"beta {value:g}": {"beta": value} for value in STATIC},
    "calibrated": {
        "calibrated": True, "beta": 1.0, "recon_weight": 1.0, "recon_reduction": "sum"},
    "clip 0.5": {"grad_clip": 0.5},
    "no clipping": {"grad_clip": 0.0},
    "warm-up": {"beta_schedule": "warmup", "beta_warmup": 5},
    "cyclical": {"beta_schedule": "cyclical", "cycle_epochs": 4, "cycle_cooldown": 2},
    "adaptive from above": {"beta_schedule": "adaptive", "beta": 20.0},
    "adaptive from below": {"beta_schedule": "adaptive", "beta": 0.001},
    "adaptive, cyclical": {
        "beta_schedule": "adaptive_cyclical", "cycle_epochs": 4, "cycle_cooldown": 1},
}  # fmt: skip
# Half the preset's channels; its 15 of 60 epochs without a KL become 2 of 8.
CIFAR = {
    "profile": "full", "max_images": 3000, "batch_size": 32, "widths": (32, 64, 128, 256),
    "epochs_phase1": 0, "epochs_phase2": 8, "sample_every": 8,
}  # fmt: skip
SLOW_START = {"epochs_phase1": 2, "epochs_phase2": 6}
CIFAR_CASES = {
    "beta 0.1": {},
    "beta 1": {"beta": 1.0},
    "zero, then 0.1": SLOW_START,
    "zero, then 1": SLOW_START | {"beta": 1.0},
    "a quarter of the channels": {"widths": (8, 16, 32, 64)},
    "two stages": {"widths": (32, 64)},
}  # fmt: skip
# A quarter of the channels of both systems, and small batches; latents are theirs.
FACES = {
    "profile": "full", "max_images": 2500, "batch_size": 16, "widths": (32, 32, 32, 32),
    "epochs_phase2": 6, "features": "squeezenet", "sample_every": 6,
}  # fmt: skip
SUMS = {"recon_weight": 1.0, "recon_reduction": "sum"}
GROWING = {"widths": (32, 64, 128, 256)}
MIXED = {"mse_weight": 0.8, "l1_weight": 0.2}
IMPROVED = SUMS | GROWING | MIXED | {
    "latent_channels": 512, "perceptual_weight": 0.1 / (3 * 64 * 64), "weight_decay": 1e-5,
    "lr_schedule_phase2": "plateau"}  # fmt: skip
STEEP = SUMS | GROWING | {
    "latent_channels": 256, "lr_phase2": 1e-3, "grad_clip": 0.1, "beta": 0.9}  # fmt: skip
FACES_CASES = {
    "original": {},
    "latent 512": {"latent_channels": 512},
    "a fifth L1": MIXED,
    "features": MIXED | {"perceptual_weight": 0.1},
    "channels that grow": GROWING,
    "rate 1e-4": {"lr_phase2": 1e-4},
    "twice as long": {"epochs_phase2": 12},
    "2000 to 1, as written": {"recon_weight": 1.0},
    "2000 to 1, sums": SUMS,
    "improved": IMPROVED | {"lr_phase2": 1e-4},
    "improved, rate 5e-4": IMPROVED,
    "improved + LPIPS": IMPROVED | {"lpips_weight": 0.1 / (3 * 64 * 64)},
    "beta 0.9 at once": STEEP,
    "beta 0.9, two epochs of warm-up": STEEP | {"beta_schedule": "warmup", "beta_warmup": 2},
}  # fmt: skip
SHARP_PICTURED = [
    "original",
    "low beta",
    "low beta, L1",
    "low beta, L1 + SSIM",
    "low beta, L1 + SSIM + features + LPIPS",
    "optimised",
]
SHARP_PICTURED += [f"original, new {row}" for row in ("latent", "loss", "phases")]
SHARP_PICTURED += [
    f"low beta, new {row}" for row in ("latent", "normalisation", "loss", "upsampling")
]
SHARP_PICTURED += [f"optimised, old {row}" for row in ("latent", "normalisation", "loss", "beta")]
CLINIC_PICTURED = ["as it ended", "sums, beta 0.001", "64 latent channels", "transposed, one conv",
                   "transposed, two convs", "upsample, one conv", "beta 16, no free bits",
                   "beta 16, 0.25 an element", "beta 16, 0.25 a batch", "as it ghosted",
                   "one scale", "all five undone", "beta 8"]  # fmt: skip
SWEEPS = {
    "clinic": {
        "preset": "medical256", "base": CLINIC, "seeds": 5, "pictured": CLINIC_PICTURED,
        "cases": {
            "as it ended": {},
            # in disguise
            "sums, beta 0.001": {
                "recon_reduction": "sum", "kl_reduction": "sum", "beta": 0.001},
            "skip without norm": {"norm_skip": False},
            "64 latent channels": {"latent_channels": 64},
            "16 latent channels": {"latent_channels": 16},
            "no clipping": {"grad_clip": 0.0},
            "best by reconstruction": {"select": "recon"},
            # grids
            "transposed, one conv": {"upsample": "transposed", "convs_per_up": 1},
            "transposed, two convs": {"upsample": "transposed"},
            "upsample, one conv": {"convs_per_up": 1},
            # collapse: 16 times the weight, because at 256 px there are 16 times the pixels per
            # latent
            "beta 16, no free bits": {"beta": 16.0, "free_bits": 0.0},
            "beta 16, 0.25 an element": {"beta": 16.0, "free_bits": 0.25},
            "beta 16, 0.25 a batch": {
                "beta": 16.0, "free_bits": 0.25, "free_bits_kind": "batch"},
            "no free bits": {"free_bits": 0.0},
            # ghosts
            "as it ghosted": {
                "latent_channels": 16, "beta": 0.1, "free_bits": 0.25, "beta_warmup": 8},
            "beta 0.1": {"beta": 0.1},
            "beta 1": {"beta": 1.0},
            "warm-up twice as long": {"beta_warmup": 32},
            # blur
            "ReLU in the decoder": {"act_decoder": "relu"},
            "no attention": {"attention": ()},
            "one scale": {"num_scales": 1},
            "no spectral loss": {"spectral_weight": 0.0},
            "all five undone": {
                "convs_per_up": 1, "act_decoder": "relu", "attention": (), "num_scales": 1,
                "spectral_weight": 0.0},
            # these press as hard here as 0.1 and 0.5 at 256 px
            "beta 1.6": {"beta": 1.6},
            "beta 8": {"beta": 8.0},
        },
    },
    "sharp": {"preset": "chest_xray", "base": OPTIMISED, "seeds": 3, "cases": SHARP, "five": FIVE,
              "pictured": SHARP_PICTURED},
    "films": {"preset": "chest_xray", "base": OPTIMISED | {"epoch_images": 272}, "seeds": 3,
              "cases": {case: SHARP[case] for case in ON_FILMS}, "judged": 205, "brief": True},
    "beta": {"preset": "fashion_mnist", "base": FASHION, "seeds": 5, "cases": BETA, "judged": 500,
             "pictured": [case for case in BETA if case.startswith("beta ")]},
    "cifar": {"preset": "cifar10", "base": CIFAR, "seeds": 3, "cases": CIFAR_CASES, "judged": 500,
              "pictured": list(CIFAR_CASES)},
    # effects of some choices of the loop after equal steps, for the benchmarks' README
    "loop": {"preset": "chest_xray", "base": OPTIMISED, "seeds": 3,
             "cases": {"bfloat16": {"precision": "bf16"}, "float32": {"precision": "fp32"},
                       "no clipping": {"grad_clip": 0.0}, "no mirroring": {"flip": False}}},
    # real people: numbers only
    "faces": {"preset": "celeba64_original", "base": FACES, "seeds": 3, "cases": FACES_CASES,
              "judged": 300},
}  # fmt: skip
