"""The explorer as a reader meets it: JupyterLab in headless Chromium, keys and clicks."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image

pytest.importorskip("selenium", reason="no selenium: pip install -r requirements-dev.txt")
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).parents[2]
CELLS = [
    """import torch, vaekit
from vaekit.data import Data
g = torch.Generator().manual_seed(0)
coarse = torch.rand(48, 1, 4, 4, generator=g)
films = torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(0, 1)
data = Data.from_tensors(*(255 * films).byte().split([32, 8, 8]))
small = dict(widths=[8, 16], attention=[], image_size=16, stem_kernel=3, perceptual_weight=0.0,
             precision="fp32", epochs_phase1=8, epochs_phase2=1, beta_warmup=0)
second, first = (vaekit.fit(vaekit.preset("chest_xray", latent_channels=n, **small), data)
                 for n in (2, 4))""",
    """vaekit.explore(first, data.train, k=2)""",
]
READY = """const done = arguments[0], notebook = jupyterapp.shell.currentWidget;
Promise.all([notebook.context.ready, notebook.sessionContext.ready]).then(() => done(true))"""
FETCH = """const [img, done] = arguments;
fetch(img.src).then(r => r.arrayBuffer())
    .then(b => done(btoa(String.fromCharCode(...new Uint8Array(b)))), () => done(null))"""


def browser_paths() -> tuple[str, str]:
    """Chromium and its driver, or a skip that says what is missing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        missing = "Chromium" if not browser else "chromedriver"
        pytest.skip(f"no {missing}: apt-get install chromium chromium-driver")
    return browser, driver


@pytest.fixture
def lab(tmp_path):
    """URL of the notebook in a JupyterLab of its own: no settings, no news, no user's home."""
    cells = [nbformat.v4.new_code_cell(code) for code in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3"}})  # fmt: skip
    nbformat.write(notebook, tmp_path / "explore.ipynb")
    settings = tmp_path / ".jupyter/lab/user-settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": path}
    environment.pop("MPLBACKEND", None)  # "Agg" would keep the figure out of the notebook
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
             "--expose-app-in-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
             "--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path}"],
            cwd=tmp_path, env=environment, stdout=log, stderr=log)  # fmt: skip
    try:
        for _ in range(300):
            assert server.poll() is None, (tmp_path / "lab.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token=t"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture
def driver(tmp_path):
    browser, chromedriver = browser_paths()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu",
                     "window-size=1400,1400", f"user-data-dir={tmp_path}/chromium"):  # fmt: skip
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


class Page:
    """What is on the screen, by the names a reader sees."""

    def __init__(self, driver):
        self.driver = driver

    def find(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def until(self, condition, what: str, seconds: float = 20):
        ignored = [StaleElementReferenceException, JavascriptException, IndexError]
        wait = WebDriverWait(self.driver, seconds, 0.05, ignored)
        return wait.until(lambda _: condition(), f"not within {seconds} s: {what}")

    def picture(self) -> bytes:
        """The bytes of the widget <img>, as the browser has them."""
        (image,) = self.find("img.widget-image")
        return base64.b64decode(self.driver.execute_async_script(FETCH, image) or "")

    def other_than(self, before: bytes, what: str) -> bytes:
        def differs():
            now = self.picture()
            return now if now != before and now.startswith(b"\x89PNG") else None

        return self.until(differs, f"another picture after {what}")

    def press(self, text: str) -> None:
        (button,) = [b for b in self.find("button.widget-button") if b.text == text]
        button.click()


def columns(png: bytes) -> list[bytes]:
    """The picture's columns, from left to right."""
    image = Image.open(io.BytesIO(png)).convert("L").transpose(Image.Transpose.TRANSPOSE)
    return [image.crop((0, y, image.width, y + 1)).tobytes() for y in range(image.height)]


def test_slider_and_second_run_in_a_real_browser(driver, lab, tmp_path):
    page = Page(driver)
    driver.get(lab)
    page.until(lambda: driver.execute_async_script(READY), "the notebook and its kernel", 60)
    driver.execute_script("window.jupyterapp.commands.execute('runmenu:run-all')")
    page.until(lambda: page.find("img.widget-image"), "the widgets", 120)
    figure, widget = page.find(".jp-OutputArea-output img")[:2]
    assert figure.get_attribute("src").startswith("data:image/png")  # the strip, above
    assert figure.rect["y"] + figure.rect["height"] <= widget.rect["y"]

    alone = page.other_than(b"", "the start")
    handle, *_ = page.find(".widget-slider .noUi-handle, .widget-slider .ui-slider-handle")
    handle.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.find(".widget-readout")[0].text == "0.10", "the slider's readout")
    alone = page.other_than(alone, "a key on the slider")

    choice = Select(page.find(".widget-dropdown select")[0])
    assert len(choice.options) == 2  # none, and the run that is not shown
    choice.select_by_index(1)
    both = page.other_than(alone, "loading a second run")
    one, pair = columns(alone), columns(both)
    assert len(pair) == 2 * len(one) + 8 and pair[: len(one)] == one  # the first stays
    handle.send_keys(Keys.ARROW_RIGHT)
    moved = page.other_than(both, "a key, with two runs")
    halves = [(columns(png)[: len(one)], columns(png)[-len(one) :]) for png in (both, moved)]
    assert all(a != b for a, b in zip(*halves, strict=True))
    page.press("resample")
    page.other_than(moved, "resample")
    if keep := os.environ.get("VAEKIT_SCREENSHOT"):
        driver.save_screenshot(keep)
