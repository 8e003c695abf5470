"""Released models: where the file is found, which files are refused, what it holds."""

import json
import re
import sys
from pathlib import Path

import pytest
import release as make
import torch
from safetensors import safe_open
from test_metrics import films

import vaekit
from vaekit.data import Data
from vaekit.files import release
from vaekit.lessons.explorer import LatentView
from vaekit.model import VAE

ROOT = Path(__file__).parent.parent
TINY = dict(image_size=16, latent_channels=12, widths=(8, 16), features="none")
FILE = "tiny.safetensors"


@pytest.fixture(scope="module")
def model() -> VAE:
    """As if trained: every layer has weights, and the basis is that of images."""
    torch.manual_seed(0)
    cfg = vaekit.preset("sharp", profile="full", data_path="/home/me/films", **TINY)
    model = VAE(cfg).eval()
    model.start_at(vaekit.linear_vae(films(40, 16), 12))
    for layer in (model.encoder.mu, model.decoder.to_image[-1]):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return model


@pytest.fixture
def places(model, tmp_path, monkeypatch) -> dict[str, Path]:
    """Where it may lie, all empty, and a release called `tiny` whose digest is known."""
    monkeypatch.setattr(release, "FOLDER", tmp_path / "repository")
    monkeypatch.setenv("VAEKIT_WEIGHTS", str(tmp_path / "given"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    names = {"the repository": "repository", "VAEKIT_WEIGHTS": "given", "the cache": "cache"}
    names["an attached input"] = "input/datasets/someone/vaekit/data/released"
    names["torch's cache"] = "torch/hub/checkpoints"
    found = {name: tmp_path / folder for name, folder in names.items()}
    for folder in found.values():
        folder.mkdir(parents=True)
    digest = make.write(tmp_path / FILE, model.cfg, make.pack(model.state_dict()))
    monkeypatch.setattr(release, "RELEASED", {"tiny": digest})
    return found


def copied(file: Path, to: Path) -> Path:
    to.write_bytes(file.read_bytes())
    return to


WHERE = ["the repository", "VAEKIT_WEIGHTS", "an attached input", "torch's cache", "the cache"]


@pytest.mark.parametrize("where", WHERE)
def test_it_is_found_wherever_weights_lie(where, places, model, tmp_path, capsys):
    copied(tmp_path / FILE, places[where] / FILE)
    found = vaekit.released("tiny")
    said = capsys.readouterr().out
    named = "the repository's data/released" if where == "the repository" else str(places[where])
    assert said == f"released model: {FILE} in {named}\n"
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    assert {v.dtype for v in found.state_dict().values()} == {torch.float32}
    assert found.cfg == model.cfg.replace(data_path="")  # nobody's folders
    x, device = films(8, 16, seed=3), next(found.parameters()).device
    ours = found.reconstruct(x.to(device)).cpu()
    torch.testing.assert_close(ours, model.reconstruct(x), atol=5e-3, rtol=0)  # a grey level or so


def test_where_it_is_not_the_caller_is_told_and_goes_on(places, capsys):
    assert vaekit.released("tiny") is None
    said = capsys.readouterr().out
    assert f"no {FILE} here, going on without" in said and "VAEKIT_WEIGHTS" in said


def test_another_file_is_refused_and_named_and_the_next_place_is_asked(places, tmp_path, capsys):
    spoilt = copied(tmp_path / FILE, places["the repository"] / FILE)
    content = bytearray(spoilt.read_bytes())
    content[-1] ^= 1  # of the last number
    spoilt.write_bytes(content)
    assert vaekit.released("tiny") is None
    said = capsys.readouterr().out
    assert "data/released is NOT the released file (SHA-256): not loaded" in said and "no " in said
    copied(tmp_path / FILE, places["the cache"] / FILE)
    assert isinstance(vaekit.released("tiny"), VAE)
    assert "NOT the released file" in capsys.readouterr().out


def test_no_file_makes_python_run_anything(places, monkeypatch):
    """A pickle under its name is refused unopened, even with the digest of the table."""
    file, mark = places["the repository"] / FILE, places["the cache"] / "ran"

    class Payload:
        def __reduce__(self):
            return Path.touch, (mark,)

    torch.save({"weights": Payload()}, file)
    assert vaekit.released("tiny") is None
    digest = make.hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(release.RELEASED, "tiny", digest)
    with pytest.raises(Exception, match="(?i)header|safetensor"):
        vaekit.released("tiny")
    assert not mark.exists()


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="no model 'chest' was released.* chest_xray_128"):
        vaekit.released("chest")


def test_small_numbers_stay_and_large_matrices_become_whole_numbers(monkeypatch):
    monkeypatch.setattr(make, "FEW", 100)
    monkeypatch.setattr(make, "MANY", 1000)
    state = {"small": torch.rand(99), "half": torch.randn(20, 10), "whole": torch.randn(50, 40)}
    state["whole"][3] = 0  # a row that was never trained
    packed = make.pack(state)
    kinds = {key: value.dtype for key, value in packed.items()}
    assert kinds == {"small": torch.float32, "half": torch.float16, "whole": torch.int8,
                     "whole:scale": torch.float32}  # fmt: skip
    back = release.restored(packed)
    assert back.keys() == state.keys() and torch.equal(back["small"], state["small"])
    torch.testing.assert_close(back["half"], state["half"], atol=0, rtol=1e-3)
    steps = (back["whole"] - state["whole"]).abs() / packed["whole:scale"]
    assert steps.max() <= 0.501 and not back["whole"][3].any()


def test_a_file_of_more_than_25_megabytes_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "MOST", 10_000)
    with pytest.raises(SystemExit, match="the most is 25"):
        make.write(tmp_path / "large.safetensors", model.cfg, make.pack(model.state_dict()))
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_writes_file_hash_and_card(places, model, tmp_path, monkeypatch, capsys):
    source = tmp_path / "table.py"
    source.write_text('RELEASED = {\n    "chest_xray_128": "",\n    "other": "ab",\n}\n')
    monkeypatch.setattr(release, "__file__", str(source))
    trainer = {"config": model.cfg.to_dict(), "ema": model.state_dict()}
    torch.save({"trainer": trainer, "seconds": 1.0}, tmp_path / "sharp-0.pt")
    told = {"closer": 0.41, "stands_out": 0.5, "p": 0.99, "authentic": 0.8, "memorises": False}
    case = {"train": 4000, "test": 600, "images_seen": 24000, "core_seconds": 3600.0, "seed": 0}
    case["precision"] = "bf16"
    case |= {"processor": "a processor", "kl": 512.5, "copies": {"pixels": told}}
    case["scores"] = {"psnr reconstruction": [27.125, 27.0, 27.25, 600],
                      "frechet prior vgg19": [1234.5, 1200.0, 1300.0, 600, 56.78]}  # fmt: skip
    results = tmp_path / "films128.json"
    monkeypatch.setattr(make.films128, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["release.py", str(tmp_path / "sharp-0.pt")])
    with pytest.raises(SystemExit, match="no card without numbers: films128.json has no sharp/0"):
        make.main()
    pca = {"kl": 480.0, "scores": {"psnr reconstruction": [27.0, 26.0, 28.0, 600]}}
    results.write_text(json.dumps({"sharp/0": case, "pca/0": pca}))
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    data = Data.from_tensors(films(30, 16), films(4, 16, seed=1), films(20, 16, seed=2))
    monkeypatch.setattr(vaekit, "load_data", lambda cfg: data, raising=False)
    make.main()
    card = (release.FOLDER / "README.md").read_text()
    (digest,) = re.findall(r'"chest_xray_128": "(\w{64})"', source.read_text())
    assert digest in card and '"other": "ab"' in source.read_text()
    assert "| PSNR of reconstructions, dB | 27.00 | 27.12 | 600 |  |" in card
    assert "| 1,234 | 600 | 57 |" in card.replace("|  |", "|")
    for said in (
        "CC BY 4.0",
        "closer 0.41",
        "authentic 0.80",
        "no alarm",
        "4,000 chest",
        "medical",
    ):
        assert said in card, said
    assert not re.search(r"[{}]|nan", card)
    monkeypatch.setattr(release, "RELEASED", {"chest_xray_128": digest})
    assert isinstance(vaekit.released("chest_xray_128"), VAE)
    assert "PSNR on 20 test films" in capsys.readouterr().out


def test_the_explorer_needs_no_images_of_it(places, model, tmp_path):
    copied(tmp_path / FILE, places["the repository"] / FILE)
    found = vaekit.released("tiny")
    view = LatentView(found, k=3)
    assert torch.equal(view.code([0, 2.0, 0], 0.0), 2 * torch.eye(12)[1])
    assert not torch.equal(view.code([], seed=1), view.code([], seed=2))
    explorer = vaekit.explore(found, k=2, out=tmp_path)
    assert len(explorer.sliders) == 2 and explorer.names == ["VAE, 12 numbers"]
    before = explorer.picture.value
    explorer.sliders[0].value = 2.0
    assert explorer.picture.value != before
    spatial = LatentView(VAE(vaekit.preset("chest_xray", **TINY | {"attention": ()})).eval(), k=2)
    assert spatial.image([1.0, 0.5]).shape == (16, 16)


# ---- the file in the repository ------------------------------------------------------------------


@pytest.mark.parametrize("name", release.RELEASED)
def test_what_lies_in_the_repository_is_what_was_released(name, capsys):
    file = release.FOLDER / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"no {file.name} in this checkout")
    assert file.stat().st_size <= make.MOST
    model = vaekit.released(name)
    assert "data/released" in capsys.readouterr().out
    images = model.decode(vaekit.sample_latents(model, 2))
    assert images.shape == (2, *model.image_shape) and images.std() > 0.05
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["vaekit"])
    assert "CC BY 4.0" in about["licence"] and "Kermany" in about["trained on"]
    assert not about["config"]["data_path"] and "medical" in about["never for"]
    card = (release.FOLDER / "README.md").read_text()
    assert release.RELEASED[name] in card and "It must not be used" in card
