"""What an import loads: after Run All the reader waits for it before the first figure."""

import subprocess
import sys

import pytest

HEAVY = ["accelerate", "lpips", "torchmetrics", "sklearn", "scipy", "matplotlib", "skimage",
         "pandas", "torchvision", "tensorboard", "IPython", "ipywidgets", "kagglehub"]  # fmt: skip


@pytest.mark.parametrize("modules, without", [
    ("vaekit", ["torch", "numpy", "cv2", "PIL", *HEAVY]),
    ("vaekit.data, vaekit.model, vaekit.losses, vaekit.metrics, vaekit.sample", HEAVY),
    ("vaekit.train", HEAVY[1:]),  # accelerate is what it trains with
])  # fmt: skip
def test_an_import_leaves_out_what_it_does_not_need(modules, without):
    code = f"import sys, {modules}; print(*[n for n in {without} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
