"""Published systems, as values that differ from the defaults of `Config`.

For reference. Comments say what the source left open.
"""

# A stack of strided convolutions with a flat code: a "convolutional VAE" in four of the systems.
# They name widths and LeakyReLU. Batch norm and transposed convolutions usually come with these
# (Foster, Generative Deep Learning, chapter 3). One phase, and nothing that is not named.
PLAIN = (
    dict(patient_key="none", clahe_clip=0.0, flip=False, in_channels=3)
    | dict(latent="vector", stem_kernel=0, block="plain", norm="batch", attention=())
    | dict(upsample="transposed", convs_per_up=1)
    | dict(act_encoder="leaky_relu", act_decoder="leaky_relu")
    | dict(l1_weight=0.0, mse_weight=1.0, ssim_weight=0.0)
    | dict(perceptual_weight=0.0, perceptual_distance="squared")
    | dict(beta=1.0, beta_schedule="constant", beta_start=0.0, beta_warmup=0)
    | dict(epochs_phase1=0, batch_size=128, optimizer="adam", weight_decay=0.0, grad_clip=0.0)
    | dict(lr_schedule_phase1="constant", lr_schedule_phase2="constant")
)
# CenterCrop(140) of 178 x 218, then Resize(64); as a share, so it fits copies of another size
FACES = PLAIN | dict(dataset="celeba", image_size=64, fit="crop", crop=140 / 178)
SUMS = dict(recon_reduction="sum", kl_reduction="sum")
# Two clipping limits were compared; 0.1 is the stricter. Batch size and epochs are not given.
BASELINE = SUMS | dict(lr_phase1=1e-3, lr_phase2=1e-3, grad_clip=0.1)

PUBLISHED = {
    # 256 px to 8x8 in five halvings, 256 channels at 16x16. Learning rate, batch size and epochs
    # are not given, nor the weight of SSIM beside L1. The warm-up of 40 and the floor of 0.05 are
    # the values that were used; 80 and no floor were only recommended earlier.
    "medical256": dict(image_size=256, latent_channels=8, stem_kernel=0, shortcut="conv")
    | dict(norm="batch", norm_skip=True, act_encoder="relu", act_decoder="leaky_relu")
    | dict(init="kaiming", zero_init_residual=False, latent_init_gain=0.01, logvar_clamp=10.0)
    | dict(ssim_weight=1.0, perceptual_weight=0.0, spectral_weight=0.1, num_scales=3)
    | dict(free_bits=0.05, beta=0.5, beta_start=0.0, beta_warmup=40)
    | dict(epochs_phase1=0, batch_size=16, optimizer="adam")
    | dict(lr_phase2=1e-4, lr_schedule_phase2="constant"),
    # The weight 2000 is the reconstruction's: 2000 x MSE + KL. If the MSE is a mean over pixels and
    # the KL a sum over the code (Foster's reading), it is 2000 / 12288 = 0.16 on the summed
    # squares: pixels of variance 3. That is why the images are blurry.
    "celeba64_original": FACES
    | dict(latent_channels=200, widths=(128, 128, 128, 128))
    | dict(recon_weight=2000.0, kl_reduction="sum", epochs_phase2=50, lr_phase2=5e-4),
    # "2000 -> 1" makes the reconstruction count for more only if it became a sum at the same time:
    # 1 on the sum is 6 times the 0.16 above; 1 on the mean is 2000 times less, and collapses. The
    # perceptual term is 0.1 x F.mse_loss, a mean, so 0.1 / 12288 of a sum. As 0.1 of a sum, the
    # squared features would pull hundreds of times harder than the pixels. Weight decay and
    # patience are not given as numbers.
    "celeba64_improved": FACES
    | SUMS
    | dict(latent_channels=512, widths=(128, 256, 512, 1024))
    | dict(mse_weight=0.8, l1_weight=0.2, perceptual_weight=0.1 / (3 * 64 * 64))
    | dict(epochs_phase2=100, weight_decay=1e-5, early_stop=10)
    | dict(lr_phase2=1e-4, lr_schedule_phase2="plateau"),
    # "256 channels" is the first width; the others give the 50 M parameters that are named. Beta is
    # adaptive. Ours are its start, the band and the cycles (Config's defaults), and the perceptual
    # distance: if squared, a fifth of it would outweigh all other terms (see above).
    "celeba256": FACES
    | dict(image_size=256, crop=1.0, latent_channels=1024, upsample="bilinear")
    | dict(widths=(256, 256, 512, 512, 1024, 1024))
    | dict(mse_weight=0.4, l1_weight=0.2, perceptual_weight=0.2, lpips_weight=0.2)
    | dict(perceptual_distance="l1", beta=0.001, beta_schedule="adaptive_cyclical")
    | dict(epochs_phase2=200, batch_size=64, weight_decay=1e-5, grad_clip=1.0, early_stop=20)
    | dict(lr_phase2=5e-5, lr_schedule_phase2="plateau", plateau_patience=10),
    # Trained on pixels in [-1, 1], where a squared error is 4 times ours. With the factor 4 the
    # objective is the published one; without it beta would be 0.2 here and 0.025 below.
    "fashion_mnist": PLAIN
    | BASELINE
    | dict(dataset="fashion_mnist", image_size=32, in_channels=1, fit="frame")
    | dict(latent_channels=32, widths=(32, 64), recon_weight=4.0, beta=0.8, epochs_phase2=50),
    # 15 epochs with beta 0 are a first phase; ours decodes the mean, the original still sampled z
    "cifar10": PLAIN
    | BASELINE
    | dict(dataset="cifar10", image_size=32, latent_channels=256, widths=(64, 128, 256, 512))
    | dict(recon_weight=4.0, beta=0.1, epochs_phase1=15, epochs_phase2=45),
    # the only one of the three whose pixels are said to stay in [0, 1], so the weight stays 1
    "celeba64": FACES
    | BASELINE
    | dict(latent_channels=256, widths=(64, 128, 256, 512))
    | dict(beta=0.9, beta_schedule="warmup", beta_warmup=2, epochs_phase2=30),
}
