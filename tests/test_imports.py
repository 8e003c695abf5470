"""What an import loads: after Run All the reader waits for it before the first figure."""

import subprocess
import sys

HEAVY = ["accelerate", "lpips", "torchmetrics", "sklearn", "scipy", "matplotlib", "skimage",
         "pandas", "torchvision", "tensorboard", "IPython", "ipywidgets", "kagglehub"]  # fmt: skip


# in this order, in one process
STEPS = {
    "vaekit": ["torch", "numpy", "cv2", "PIL", *HEAVY],
    "vaekit.data, vaekit.model, vaekit.losses, vaekit.metrics, vaekit.sample": HEAVY,
    "vaekit.train": HEAVY[1:],  # accelerate is what it trains with
}


def test_an_import_leaves_out_what_it_does_not_need():
    code = "import sys\n"
    for modules, without in STEPS.items():
        code += f"import {modules}\nprint({modules!r}, 'loads', "
        code += f"[n for n in {without} if n in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.endswith("loads []") for line in lines), done.stdout
