"""Blocks, encoder, decoder, VAE: shapes, initial values, checks of the input."""

import pytest
import torch
from torch import nn

import vaekit
from vaekit.model import VAE, FreeDown, FreeUp, SelfAttention, UpBlock, make_norm, stage_sizes

SMALL = {"widths": [8, 16, 32], "attention": [8], "latent_channels": 4, "shortcut": "conv"}


def make(**changes) -> VAE:
    torch.manual_seed(0)
    return VAE(vaekit.preset("chest_xray", **{**SMALL, **changes}))


def modules(model, kind) -> int:
    return sum(isinstance(m, kind) for m in model.modules())


def test_chest_xray_has_the_noted_latent():
    cfg = vaekit.preset("chest_xray", profile="full")
    assert VAE(cfg).latent_shape == (64, 4, 4)
    assert stage_sizes(cfg) == [128, 64, 32, 16, 8, 4]


def test_reconstruct_uses_the_mean_and_forward_samples():
    model, x = make().eval(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model.reconstruct(x), model.reconstruct(x))
    torch.testing.assert_close(model(x, sample=False)[0], model.reconstruct(x))
    assert not torch.equal(model(x)[0], model(x)[0])
    with torch.no_grad():
        assert not any(part.requires_grad for part in model(x))


def takers() -> list:
    """One of each kind that encodes 1 x 32 x 32."""
    pca = vaekit.linear_vae(torch.rand(40, 1, 32, 32), 16)
    sharp = VAE(vaekit.preset("sharp"))
    sharp.start_at(pca)
    return [make().eval(), sharp.eval(), pca]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.rand(2, 1, 64, 64), r"\(N, 1, 32, 32\).*\(2, 1, 64, 64\)"),
        (torch.rand(2, 1, 32, 64), r"\(2, 1, 32, 64\)"),
        (torch.rand(1, 32, 32), r"\(1, 32, 32\)"),
        (torch.rand(2, 3, 32, 32), r"\(2, 3, 32, 32\)"),
        (torch.rand(0, 1, 32, 32), r"\(0, 1, 32, 32\)"),
        (torch.rand(2, 1, 32, 32).numpy(), "ndarray"),
        (torch.full((2, 1, 32, 32), 255.0), "from 255 to 255"),
        (torch.full((2, 1, 32, 32), 255), "int64 from 255"),
        (torch.full((2, 1, 32, 32), -1.0), "from -1 to -1"),
        (torch.full((2, 1, 32, 32), torch.nan), "nan"),
    ],
    ids=map(str, range(10)),
)
def test_other_images_are_refused_with_the_numbers(x, says):
    for model in takers():
        for f in (model, model.encode, model.reconstruct):
            with pytest.raises(ValueError, match=says):
                f(x)


def test_codes_of_another_shape_are_refused():
    for model in takers():
        for shape in ((64, 4, 4), (4,), (4, 4, 3), (4, 16)):
            if shape != model.latent_shape:
                with pytest.raises(ValueError, match=r"codes.*not \(2, "):
                    model.decode(torch.zeros(2, *shape))


def test_uint8_is_divided_by_255():
    x = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    for model in takers():
        torch.testing.assert_close(model.reconstruct(x), model.reconstruct(x / 255))


@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16, torch.double])
def test_other_precisions_reconstruct_in_float32(kind):
    x = torch.rand(2, 1, 32, 32)
    for model in takers():
        expected = model.reconstruct(x)
        model.to(kind)
        for given in (x, x.to(kind)):
            found = model.reconstruct(given)
            assert found.dtype == model(given)[1].dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_reparameterize_has_the_right_moments():
    model = make()
    mu, logvar = torch.full((20_000, 1), 2.0), torch.full((20_000, 1), 1.0)
    z = model.reparameterize(mu, logvar)
    assert z.mean().item() == pytest.approx(2, abs=0.05)
    assert z.var().item() == pytest.approx(2.718, rel=0.05)


@pytest.mark.parametrize(
    ("change", "kind", "encoder", "decoder"),
    [
        # how many more of a kind than without the change, in either half
        ({"norm": "batch"}, nn.BatchNorm2d, 5, 5),
        ({"norm": "none"}, nn.Identity, 5, 5),
        ({"act_encoder": "relu"}, nn.ReLU, 5, 0),
        ({"act_decoder": "leaky_relu"}, nn.LeakyReLU, 0, 5),
        ({"upsample": "transposed"}, nn.ConvTranspose2d, 0, 3),
        ({"shortcut": "free"}, FreeDown, 2, 0),
        ({"shortcut": "free"}, FreeUp, 0, 2),
        ({"attention": []}, SelfAttention, -1, -1),
        ({"attention": [8, 16]}, SelfAttention, 1, 1),
        ({"norm": "batch", "norm_skip": True}, nn.BatchNorm2d, 7, 7),
        ({"convs_per_up": 1}, nn.Conv2d, 0, -2),
        ({"block": "plain"}, nn.Conv2d, -4, -2),
        ({"stem_kernel": 0}, nn.Conv2d, 2, 0),
    ],
    ids=str,
)
def test_each_value_brings_its_modules(change, kind, encoder, decoder):
    base, other = make(), make(**change)
    assert modules(other.encoder, kind) - modules(base.encoder, kind) == encoder
    assert modules(other.decoder, kind) - modules(base.decoder, kind) == decoder


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"zero_init_residual": False}, ("main.4.weight",)),  # last norm of a main branch
        ({"latent_init_gain": 0.01}, ("encoder.mu", "encoder.logvar")),
    ],
)
def test_each_initialisation_touches_its_own_values(change, where):
    base, other = make().state_dict(), make(**change).state_dict()
    changed = [name for name in base if not torch.equal(base[name], other[name])]
    assert changed and all(any(part in n for part in where) for n in changed), changed


@pytest.mark.parametrize("how", ["bilinear", "nearest"])
def test_upsampling_doubles_by_the_method_asked_for(how):
    block = make(upsample=how).decoder.stages[0][0]
    x = torch.randn(1, 32, 4, 4)
    up = nn.functional.interpolate(x, scale_factor=2, mode=how)
    torch.testing.assert_close(block.main[0](x), block.main[0].conv(up))


def test_attention_starts_as_identity_and_its_map_is_what_forward_uses():
    block, x = SelfAttention(8), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x)
    nn.init.eye_(block.project.weight.data.view(8, 8))
    weights = block.attention_map(x)  # (B, 25, 25)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 25))
    values = block.attend(x)[1]
    by_hand = x + (weights @ values).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x), by_hand)


def test_one_by_one_before_bilinear_equals_after():
    torch.manual_seed(0)
    block = UpBlock(8, 4, vaekit.preset(**SMALL)).eval()
    x = torch.randn(1, 8, 6, 6)
    up = lambda t: nn.functional.interpolate(t, scale_factor=2, mode="bilinear")  # noqa: E731
    slow = block.act(block.main(x) + block.skip[0](up(x)))
    torch.testing.assert_close(block(x), slow)


def test_free_shortcuts_round_up_and_want_widths_that_divide():
    assert FreeDown(4, 8)(torch.rand(1, 4, 5, 5)).shape == (1, 8, 3, 3)
    with pytest.raises(ValueError, match="divisible"):
        make(shortcut="free", widths=[8, 16, 128])


def test_the_stem_is_as_wide_as_asked():
    assert [make(stem_kernel=k).encoder.stages[0][0][0].kernel_size[0] for k in (1, 3)] == [1, 3]


def test_kaiming_by_the_outgoing_connections_blows_up_a_narrow_head():
    """A head from 32 to 2 channels: the two variances stand as their fans, 16 to 1."""
    narrow = make(init="kaiming", latent_channels=2).encoder.mu.weight.var().item()
    wide = make(init="kaiming_out", latent_channels=2).encoder.mu.weight.var().item()
    assert wide / narrow == pytest.approx(16, rel=0.15)
    assert narrow == pytest.approx(2 / (32 * 9), rel=0.15)


def test_kaiming_changes_convolutions_but_not_the_attention_output():
    model = make(init="kaiming")
    assert not torch.equal(model.decoder.first.weight, make().decoder.first.weight)
    for block in model.modules():
        if isinstance(block, SelfAttention):
            assert block.project.weight.abs().max() == 0


def test_small_gain_starts_at_the_prior():
    _, mu, logvar = make(latent_init_gain=0.01)(torch.rand(2, 1, 32, 32))
    assert mu.abs().max() < 0.2 and logvar.abs().max() < 0.2


def test_clamp():
    model = make(logvar_clamp=2.0)
    model.encoder.logvar.bias.data.fill_(100.0)
    x = torch.rand(1, 1, 32, 32)
    assert model.encode(x)[1].max() == 2
    model.encoder.logvar.bias.data.fill_(-100.0)
    assert model.encode(x)[1].min() == -2
    free = make(logvar_clamp=0.0)
    free.encoder.logvar.bias.data.fill_(100.0)
    assert free.encode(x)[1].min() > 50


def test_every_parameter_gets_a_gradient():
    model = make()
    x_hat, mu, logvar = model(torch.rand(2, 1, 32, 32))
    (x_hat.mean() + mu.square().mean() + logvar.exp().mean()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert silent == []


def test_residual_blocks_start_as_their_skip():
    block = make().encoder.stages[1][0]
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(block(x), block.act(block.skip(x)))
    plain = make(zero_init_residual=False).encoder.stages[1][0]
    assert not torch.allclose(plain(x), plain.act(plain.skip(x)))
    make(norm="none")  # nothing to zero, nothing to break


@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_rescaling_changes_units_and_nothing_else(latent):
    model, x = make(latent=latent).eval(), torch.rand(16, 1, 32, 32)
    before, mu = model.reconstruct(x), model.encode(x)[0]
    rms = mu.transpose(0, 1).flatten(1).square().mean(1).sqrt()
    model.rescale_latents(rms.detach(), sigma=0.2)
    torch.testing.assert_close(model.reconstruct(x), before, atol=1e-5, rtol=1e-4)
    mu, logvar = model.encode(x)
    assert mu.square().mean().item() == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close((0.5 * logvar).exp(), torch.full_like(mu, 0.2))


def test_a_single_pixel_is_not_halved():
    """On a CPU with native bf16, oneDNN leaves most of such a kernel's gradient unwritten."""
    assert make(image_size=8, widths=[8, 8, 8], attention=[]).latent_shape[1:] == (1, 1)
    with pytest.raises(ValueError, match="one a halving"):
        make(image_size=8, widths=[8, 8, 8, 8], attention=[])


def test_group_norm_takes_any_width():
    for channels in range(1, 130):
        groups = make_norm("group", channels).num_groups
        assert channels % groups == 0 and groups <= 8 and (groups == 1 or channels // groups >= 4)
    assert [make_norm("group", c).num_groups for c in (8, 16, 32, 512)] == [2, 4, 8, 8]
