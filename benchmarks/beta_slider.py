"""The five small models of notebook 08's slider: one beta each, on the bundled films.

    python benchmarks/beta_slider.py

Writes vaekit/lessons/results/slider_<beta>.safetensors; what is there is not trained again.
"""

import tempfile

from vaekit.keep.run import fit
from vaekit.lessons.beta_slider import save_model, slider_config
from vaekit.lessons.sweeps import RESULTS, bundled_data

BETAS = (0.001, 0.1, 1.0, 10.0, 100.0)


def main() -> None:
    for beta in BETAS:
        path = RESULTS / f"slider_{beta:g}.safetensors"
        if path.exists():
            continue
        cfg = slider_config(beta)
        data = bundled_data()
        with tempfile.TemporaryDirectory() as folder:
            run = fit(cfg, data, folder, resume="never", verbose=False)
        save_model(run.model, path)
        path.chmod(0o644)
        last = run.history[-1]
        print(f"beta {beta:g}: {data.source}, validation {last['val_psnr']:.2f} dB,"
              f" {path.stat().st_size / 1e6:.2f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
