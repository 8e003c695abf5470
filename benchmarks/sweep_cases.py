"""What `sweep.py` trains: per sweep a preset, the changes all its runs share, and the cases.

A case is a change of config values on top of those. "select": "recon" keeps the weights of the
epoch with the best reconstruction, where else the best ELBO counts.
"""

# The system of the preset `medical256` at a quarter of its side, in three halvings instead of five
# so that its latent stays 8 x 8 x 8, with what lets 40 epochs suffice: a high rate that falls.
CLINIC = {
    "profile": "full", "image_size": 64, "widths": (16, 32, 64), "batch_size": 16,
    "epochs_phase2": 40, "beta_warmup": 16, "lr_phase2": 2e-3, "lr_schedule_phase2": "cosine",
    "lr_warmup": 0.02, "ema": 0.99, "sample_every": 40,
}  # fmt: skip
SWEEPS = {
    "clinic": {
        "preset": "medical256", "base": CLINIC, "seeds": 5,
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
            # collapse: 16 times the weight, for at 256 px there are 16 times the pixels a latent
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
            # 0.1 and 0.5 at 256 px press as hard as these do here
            "beta 1.6": {"beta": 1.6},
            "beta 8": {"beta": 8.0},
        },
    },
}  # fmt: skip
