"""Config, presets and profiles: every wrong value is an error that names what is allowed."""

import numpy as np
import pytest

import vaekit
from vaekit.config import Config, stage_sizes
from vaekit.presets import PROFILE_CHANGES


def test_given_beats_profile_and_none_leaves_it_to_the_profile():
    smoke = PROFILE_CHANGES["smoke"]
    cfg = vaekit.preset("chest_xray", image_size=48, batch_size=None)
    assert (cfg.image_size, cfg.batch_size) == (48, smoke["batch_size"])


def test_numpy_and_paths_become_plain(tmp_path):
    cfg = vaekit.preset(
        np.str_("chest_xray"), image_size=np.int64(48), beta=np.float64(0.5), l1_weight=np.int32(2),
        flip=np.bool_(False), widths=np.array([8, 16]), attention=[np.int64(12)],
        data_path=tmp_path,
    )  # fmt: skip
    plain = vaekit.preset(
        image_size=48, beta=0.5, l1_weight=2.0, flip=False, widths=(8, 16), attention=(12,),
        data_path=str(tmp_path),
    )  # fmt: skip
    assert cfg == plain
    cfg.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == cfg


@pytest.mark.parametrize(("size", "moved"), [(96, 12), (160, 20), (224, 14), (299, 19)])
def test_attention_that_was_not_given_moves_to_a_size_that_occurs(size, moved):
    with pytest.warns(UserWarning, match=rf"{moved}.*moves to \[{moved}\]"):
        cfg = vaekit.preset(profile="full", image_size=size)
    assert cfg.attention == (moved,) and moved in stage_sizes(cfg)[1:]
    with pytest.raises(ValueError, match=f"attention=.16,.* the maps have .*{moved}"):
        cfg.replace(attention=(16,))
    old = Config.from_dict(cfg.to_dict() | {"attention": [16]})  # as older versions stored it
    assert old.replace(beta=0.1).attention == (16,)


def test_durations_keep_their_share_of_the_run():
    assert vaekit.preset(profile="full", epochs_phase2=20).beta_warmup == 10
    assert vaekit.preset(profile="full", epochs_phase2=20, beta_warmup=3).beta_warmup == 3


def test_profile_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("VAEKIT_PROFILE", "quick")
    assert vaekit.profile() == "quick" and vaekit.preset().profile == "quick"
    monkeypatch.setenv("VAEKIT_PROFILE", "fast")
    with pytest.raises(ValueError, match="smoke, quick, full"):
        vaekit.preset()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm": "layer"}, "group, batch, none"),
        ({"image_size": 4}, r"outside \[8"),
        ({"image_size": "64"}, "should be int"),
        ({"beta": float("nan")}, "outside"),
        ({"beta": float("inf")}, "beta=inf is outside"),
        ({"beta": 10**400}, "beta=10"),
        ({"epochs_phase2": 10**9}, "epochs_phase2=1000000000 is outside"),
        ({"stem_kernel": 4}, "stem_kernel=4"),  # would give 33 px another size than the law says
        ({"widths": [8] * 6}, "1 to 5 numbers, one a halving"),
        ({"flip": 1}, "should be bool"),
        ({"betta": 1}, "the fields are"),
        ({"widths": []}, "one a halving"),
        ({"widths": (8.5,)}, "should be tuple of int"),
        ({"widths": 8}, "should be tuple"),
        ({"epochs_phase2": np.float64(3)}, "should be int"),
        ({"attention": (16, 5)}, "the maps have 16, 8, 4, 2, 1"),
        ({"widths": [32, 0]}, r"outside \[1"),
        ({"beta_warmup": 2, "epochs_phase2": 2}, "beta_warmup=2 should be below epochs_phase2=2"),
        ({"cycle_cooldown": 8}, "cycle_cooldown=8 should be below"),
        ({"kl_share_low": 0.2}, "kl_share_low=0.2 should be below"),
        ({"start": "linear"}, "latent='vector'"),
        ({"start": "linear", "latent": "vector"}, "rescale_latents"),
        ({"latent": "vqvae"}, "spatial, vector, fsq, vq"),
        ({"levels": ()}, "levels"),
        ({"levels": (1, 4)}, "levels"),
        ({"levels": (256, 256, 2)}, "levels"),
        ({"levels": (4.0, 4)}, "levels"),
        ({"latent": "fsq", "beta_schedule": "adaptive"}, "adaptive"),
        ({"l1_weight": 0, "calibrated": True}, "l1_weight or mse_weight"),
        ({"l1_weight": 0, "ssim_weight": 0}, "l1_weight or mse_weight"),
    ],
)
def test_wrong_values_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        vaekit.preset("chest_xray", **change)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="chest_xray"):
        vaekit.preset("chest")
