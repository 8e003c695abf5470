"""Whatever comes in: nothing is raised but the errors that are documented.

`make torture` runs this file with VAEKIT_CASES=2000 (10,000 cases and more in all).
"""

import gzip
import io
import json
import math
import os
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from films import huge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vaekit import config, model
from vaekit.config import RULES, Config
from vaekit.files import images
from vaekit.keep.checkpoint import CheckpointError, load_checkpoint

CASES = int(os.environ.get("VAEKIT_CASES", 40))
cases = settings(max_examples=CASES, deadline=None, derandomize=CASES == 40, database=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # what Pillow and torch say of such files
COUNT: Counter = Counter()  # cases by test and by what came of them


@pytest.fixture(scope="module", autouse=True)
def _on_record():
    yield
    if record := os.environ.get("VAEKIT_RECORD"):
        with open(record, "w") as file:
            json.dump(dict(COUNT), file)


# ---- configurations --------------------------------------------------------------------------


def valid(name: str):
    """Values of the field within its choices or range."""
    kind, choices, low, high = RULES[name]
    high = min(high, 1e6) if name != "seed" else high
    if choices:
        return st.sampled_from(list(choices))
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(max_size=20)
    if kind is tuple:
        return st.lists(st.integers(low, high), max_size=6).map(tuple)
    if kind is int:
        return st.integers(low, int(high))
    whole = [n for n in (0, 1, 2) if low <= n <= high]
    return st.floats(low, high) | st.sampled_from(whole or [low])


# few fields at a time: many together contradict one another
some_fields = st.lists(st.sampled_from(sorted(RULES)), min_size=1, max_size=6, unique=True)


@cases
@given(some_fields.flatmap(lambda names: st.fixed_dictionaries({n: valid(n) for n in names})))
def test_a_config_survives_json(changes):
    try:
        cfg = Config(**changes)
    except ValueError as error:  # two fields that do not go together
        assert any(name in str(error) for name in RULES)
        COUNT["config: two fields contradict"] += 1
        return
    assert Config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert not cfg.differences(Config.from_dict(cfg.to_dict()))
    COUNT["config: equal after JSON"] += 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
) | st.sampled_from([10**400, -(10**400), 1e9, 1e308, "../x", [10**9], [1.5], [True], [[8]]])


@cases
@given(st.sampled_from(list(RULES)), anything)
def test_an_invalid_value_is_named(name, value):
    try:
        cfg = Config.from_dict({name: value})
    except ValueError as error:
        assert name in str(error) and len(str(error)) < 2000
        COUNT["value: refused by name"] += 1
        return
    kept = getattr(cfg, name)
    assert kept == (tuple(value) if isinstance(value, list) else value)
    assert kept in (RULES[name].choices or (kept,)) and kept != math.inf
    COUNT["value: valid"] += 1


def written(value) -> bytes:
    return json.dumps(value, default=str).encode()


jsons = st.one_of(
    st.binary(), st.text().map(str.encode), anything.map(written),
    st.dictionaries(st.sampled_from(list(RULES)), anything).map(written),
    st.sampled_from([b'{"beta": 1e999}', b'{"seed": 1' + b"0" * 5000 + b"}"]),
)  # fmt: skip


@cases
@given(jsons)
def test_any_bytes_as_config_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    try:
        assert isinstance(Config.load(path), Config)
        COUNT["config file: valid"] += 1
    except ValueError:
        COUNT["config file: refused"] += 1


@cases
@given(st.dictionaries(st.sampled_from(list(RULES)), anything, max_size=3), anything)
def test_preset_raises_nothing_else(changes, name):
    for given_name in (name if isinstance(name, str) else "chest_xray", "celeba256"):
        try:
            assert config.preset(given_name, **changes).profile in RULES["profile"].choices
            COUNT["preset: valid"] += 1
        except ValueError:
            COUNT["preset: refused"] += 1


# ---- shapes ----------------------------------------------------------------------------------


@cases
@given(st.integers(8, 40), st.lists(st.sampled_from([4, 6, 8, 16]), min_size=1, max_size=4),
       st.sampled_from([1, 3]), st.integers(1, 9), st.sampled_from([0, 1, 3, 7]),
       st.lists(st.integers(1, 20), max_size=2), st.data())  # fmt: skip
def test_the_shape_law(size, widths, channels, latents, stem, attention, data):
    names = ("latent", "block", "shortcut", "norm", "upsample", "convs_per_up", "norm_skip")
    changes = {name: data.draw(valid(name)) for name in names}
    try:
        cfg = replace(Config(), image_size=size, widths=tuple(widths), latent_channels=latents,
                      stem_kernel=stem, in_channels=channels, attention=tuple(attention),
                      **changes)  # fmt: skip
        vae = model.VAE(cfg).eval()
    except ValueError as error:
        assert "widths" in str(error) or "shortcut" in str(error) or "stem_kernel" in str(error)
        COUNT["shapes: refused"] += 1
        return
    x = torch.rand(2, channels, size, size)
    with torch.no_grad():
        x_hat, mu, logvar = vae(x)
    side = math.ceil(size / 2 ** len(widths))  # rounding up at each halving comes to the same
    law = (latents,) if cfg.latent == "vector" else (cfg.code_channels, side, side)
    assert x_hat.shape == x.shape and vae.latent_shape == law
    assert mu.shape == logvar.shape == (2, *law) and mu.dtype == x_hat.dtype == torch.float32
    assert 0 <= x_hat.min() and x_hat.max() <= 1
    COUNT["shapes: hold"] += 1


# ---- files -----------------------------------------------------------------------------------


def encoded(kind: str, mode: str) -> bytes:
    buffer, pixels = io.BytesIO(), np.arange(33 * 47 * 3, dtype=np.uint8).reshape(33, 47, 3)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [encoded(kind, mode) for kind, mode in
            [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
             ("BMP", "RGB"), ("TIFF", "I;16"), ("GIF", "P"), ("WEBP", "RGB")]]  # fmt: skip
PICTURES.append(huge(100_000, 100_000))


@st.composite
def damaged(draw, originals):
    """One of `originals` with bytes changed, cut off, or put in."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["change", "cut", "insert"]))
        if how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=8))
        elif content:
            content[at] = draw(st.integers(0, 255))
    return bytes(content)


@cases
@given(st.binary(max_size=300) | damaged(PICTURES), st.sampled_from([1, 3]))
def test_any_bytes_as_image(tmp_path_factory, content, channels):
    path = tmp_path_factory.getbasetemp() / "image"
    path.write_bytes(content)
    try:
        pixels = images.decode(path, channels)
        assert pixels.dtype == np.uint8 and pixels.ndim == (2 if channels == 1 else 3)
        COUNT["image: decoded"] += 1
    except images.BadImage as error:
        assert str(error)
        COUNT["image: refused"] += 1


def arrays() -> list[bytes]:
    """Images in the idx format, plain and zipped, and as an .npz."""
    x, npz = np.zeros((2, 4, 4), np.uint8), io.BytesIO()
    np.savez_compressed(npz, x=x, y=[0, 1], classes=["a", "b"])
    idx = bytes([0, 0, 8, 3, *(0, 0, 0, 2), *(0, 0, 0, 4), *(0, 0, 0, 4)]) + x.tobytes()
    return [idx, gzip.compress(idx), npz.getvalue()]


@cases
@given(st.binary(max_size=300) | damaged(arrays()), st.sampled_from(["npz", "idx", "idx.gz"]))
def test_any_bytes_as_arrays(tmp_path_factory, content, kind):
    folder = tmp_path_factory.getbasetemp() / f"arrays {kind}"
    folder.mkdir(exist_ok=True)
    names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
    for name in names:
        (folder / f"{name}-ubyte{'.gz' if kind == 'idx.gz' else ''}").write_bytes(content)
    (folder / "any.npz").write_bytes(content)
    try:
        assert images.read_arrays(folder / "any.npz" if kind == "npz" else folder)
        COUNT["arrays: read"] += 1
    except images.BadImage as error:
        assert "cannot be read" in str(error)
        COUNT["arrays: refused"] += 1


def checkpoint_bytes() -> bytes:
    state = {"epoch": 3, "model": {"w": torch.arange(12.0).view(3, 4), "b": torch.ones(2)},
             "history": [{"epoch": 1, "loss": 0.5}], "best_loss": math.inf}  # fmt: skip
    with torch.random.fork_rng():
        buffer = io.BytesIO()
        torch.save({"format": 1, **state}, buffer)
    return buffer.getvalue()


CHECKPOINT = checkpoint_bytes()
OPCODES = st.lists(st.sampled_from([b"\x80\x02", b"cos\nsystem\n", b"cbuiltins\neval\n", b"(", b"t",
                                    b"R", b"}", b"]", b"X\x02\x00\x00\x00hi", b"Q", b"b", b"s",
                                    b"q\x00", b"h\x00", b"K\x01", b"."]) | st.binary(max_size=3),
                   max_size=30).map(b"".join)  # fmt: skip


def packed(pickled: bytes) -> bytes:
    """The checkpoint with another pickle in it: every checksum is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as old, zipfile.ZipFile(buffer, "w") as new:
        for part in old.infolist():
            content = pickled if part.filename.endswith("data.pkl") else old.read(part)
            new.writestr(zipfile.ZipInfo(part.filename), content)
    return buffer.getvalue()


PICKLE = zipfile.ZipFile(io.BytesIO(CHECKPOINT)).read("archive/data.pkl")


@cases
@given(st.binary(max_size=300) | damaged([CHECKPOINT])
       | (OPCODES | damaged([PICKLE])).map(packed))  # fmt: skip
def test_any_bytes_as_checkpoint(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(content)
    try:
        state = load_checkpoint(path)
        assert isinstance(state, dict) and state["format"] == 1
        COUNT["checkpoint: read"] += 1
    except CheckpointError as error:
        assert "fuzzed.pt cannot be used" in str(error)
        COUNT["checkpoint: refused"] += 1


@cases
@given(st.integers(0, len(CHECKPOINT) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_without_effect(tmp_path_factory, at, flip):
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "whole.pt").exists():
        (folder / "whole.pt").write_bytes(CHECKPOINT)
    whole, content = load_checkpoint(folder / "whole.pt"), bytearray(CHECKPOINT)
    content[at] ^= flip
    (folder / "flipped.pt").write_bytes(content)
    try:
        state = load_checkpoint(folder / "flipped.pt")
    except CheckpointError:
        COUNT["flipped: refused"] += 1
        return
    assert all(torch.equal(state["model"][k], w) for k, w in whole["model"].items())
    assert {k: v for k, v in state.items() if k != "model"} == {
        k: v for k, v in whole.items() if k != "model"}  # fmt: skip
    COUNT["flipped: without effect"] += 1
