import pytest
import torch
from torch import nn

import vaekit
from vaekit.fast import FreeDown, FreeUp
from vaekit.model import VAE, SelfAttention, UpBlock, make_norm, stage_sizes

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


@pytest.mark.parametrize("size", [32, 33, 47, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_shapes_and_range(size, channels, latent):
    model = make(image_size=size, in_channels=channels, latent=latent)
    x = torch.rand(2, channels, size, size)
    x_hat, mu, logvar = model(x)
    assert x_hat.shape == x.shape and 0 <= x_hat.min() and x_hat.max() <= 1
    assert mu.shape == logvar.shape == (2, *model.latent_shape)
    assert model.decode(mu).shape == x.shape and x_hat.dtype == mu.dtype == torch.float32


def test_reconstruct_uses_the_mean_and_forward_samples():
    model, x = make().eval(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model.reconstruct(x), model.reconstruct(x))
    torch.testing.assert_close(model(x, sample=False)[0], model.reconstruct(x))
    assert not torch.equal(model(x)[0], model(x)[0])


def test_reparameterize_has_the_right_moments():
    model = make()
    mu, logvar = torch.full((20_000, 1), 2.0), torch.full((20_000, 1), 1.0)
    z = model.reparameterize(mu, logvar)
    assert z.mean().item() == pytest.approx(2, abs=0.05)
    assert z.var().item() == pytest.approx(2.718, rel=0.05)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"norm": "batch"}, nn.BatchNorm2d),
        ({"norm": "none"}, nn.Identity),
        ({"act_encoder": "relu"}, nn.ReLU),
        ({"act_decoder": "leaky_relu"}, nn.LeakyReLU),
        ({"upsample": "transposed"}, nn.ConvTranspose2d),
        ({"shortcut": "free"}, FreeDown),
        ({"attention": [8, 16]}, SelfAttention),
    ],
)
def test_each_value_brings_its_module(change, kind):
    assert modules(make(**change), kind) > modules(make(), kind)


def shapes(model) -> dict:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        # parts of the names of the only parameters that may come, go or change shape
        ({"act_encoder": "relu"}, ()),
        ({"act_decoder": "leaky_relu"}, ()),
        ({"upsample": "nearest"}, ()),
        ({"logvar_clamp": 2.0}, ()),
        ({"zero_init_residual": False}, ()),
        ({"latent_init_gain": 0.01}, ()),
        ({"init": "kaiming"}, ()),
        ({"init": "kaiming_out"}, ()),
        ({"upsample": "transposed"}, (".0.conv.weight", "main.0.conv.weight")),
        ({"shortcut": "free"}, ("skip",)),
        ({"block": "plain"}, ("skip", "main")),
        ({"convs_per_up": 1}, ("decoder.stages",)),
        ({"stem_kernel": 3}, ("encoder.stages.0",)),
        ({"attention": []}, ("norm", "qkv", "project")),
        ({"norm_skip": True}, ("skip.1",)),
        ({"latent_channels": 7}, ("encoder.mu", "encoder.logvar", "decoder.first")),
        ({"latent": "vector"}, ("encoder.mu", "encoder.logvar", "decoder.first")),
        ({"in_channels": 3}, ("encoder.stages.0", "to_image")),
        ({"image_size": 64, "attention": [16]}, ()),
    ],
    ids=str,
)
def test_each_value_changes_its_parameters_and_no_others(change, where):
    base, other = shapes(make()), shapes(make(**change))
    changed = {n for n in base.keys() | other.keys() if base.get(n) != other.get(n)}
    assert all(any(part in name for part in where) for name in changed), sorted(changed)
    assert bool(changed) == bool(where)
    model = make(**change)
    x = torch.rand(2, model.cfg.in_channels, model.cfg.image_size, model.cfg.image_size)
    assert model(x)[0].shape == x.shape


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


def test_activation_is_per_half():
    model = make(act_encoder="relu")
    assert modules(model.encoder, nn.SiLU) == 0 and modules(model.decoder, nn.ReLU) == 0


def test_attention_only_where_asked_and_in_both_halves():
    assert modules(make().encoder, SelfAttention) == modules(make().decoder, SelfAttention) == 1
    assert modules(make(attention=[]), SelfAttention) == 0


def test_attention_starts_as_identity_and_its_map_is_what_forward_uses():
    block, x = SelfAttention(8), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x)
    nn.init.eye_(block.project.weight.data.view(8, 8))
    weights = block.attention_map(x)  # (B, 25, 25)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 25))
    values = block.queries_keys_values(x)[2]
    by_hand = x + (weights @ values).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x), by_hand)


def test_convs_per_up_and_plain_blocks_change_parameters():
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    base = make()
    assert count(make(convs_per_up=1).decoder) < count(base.decoder)
    assert count(make(convs_per_up=1).encoder) == count(base.encoder)
    assert count(make(block="plain")) < count(base)
    assert count(make(stem_kernel=0).encoder) != count(base.encoder)


def test_norm_skip_normalises_the_skip_branch_only():
    bare, normed = make(norm="batch"), make(norm="batch", norm_skip=True)
    extra = modules(normed, nn.BatchNorm2d) - modules(bare, nn.BatchNorm2d)
    assert extra == 4  # two residual blocks down, two up


def test_one_by_one_before_bilinear_equals_after():
    torch.manual_seed(0)
    block = UpBlock(8, 4, vaekit.preset(**SMALL)).eval()
    x = torch.randn(1, 8, 6, 6)
    up = lambda t: nn.functional.interpolate(t, scale_factor=2, mode="bilinear")  # noqa: E731
    slow = block.act(block.main(x) + block.skip[0](up(x)))
    torch.testing.assert_close(block(x), slow)


def test_free_shortcuts_keep_the_mean_and_mirror_each_other():
    x = torch.randn(2, 8, 4, 4)
    up = FreeUp(8, 4)(x)
    assert up.shape == (2, 4, 8, 8)
    torch.testing.assert_close(FreeDown(4, 8)(up), x)  # repeat up, then mean down
    with pytest.raises(ValueError, match="divisible"):
        FreeDown(3, 16)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("wide", [(8, 32), (8, 16), (8, 8), (8, 4), (8, 2), (3, 4), (1, 4)])
def test_free_shortcuts_are_their_definitions(wide, layout):
    """Unshuffled and averaged, repeated and shuffled, whatever is left out on the way."""
    high, low = wide
    x = torch.randn(2, high, 8, 6).contiguous(memory_format=layout)
    down = nn.functional.pixel_unshuffle(x, 2).unflatten(1, (low, -1)).mean(2)
    torch.testing.assert_close(FreeDown(high, low)(x), down)
    repeated = down.repeat_interleave(4 * high // low, 1)
    assert torch.equal(FreeUp(low, high)(down), nn.functional.pixel_shuffle(repeated, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 32, 40, 40), (3, 32, 5, 7), (2, 64, 1, 1)])
def test_group_norm_in_channels_last_has_pytorchs_gradients(shape, dtype):
    norm, plain = make_norm("group", shape[1]), nn.GroupNorm(8, shape[1])
    nn.init.normal_(norm.weight, 1, 0.3)
    plain.load_state_dict(norm.state_dict())
    x = (2 * torch.randn(shape) + 3).to(dtype).requires_grad_()
    y = norm(x.contiguous(memory_format=torch.channels_last))
    expected = plain(x.float())
    g = torch.randn(shape)
    found = torch.autograd.grad(y, [x, *norm.parameters()], g.to(dtype))
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], g)
    for a, b in zip([y, *found], [expected, *wanted], strict=True):
        away = (a.float() - b.float()).norm() / b.float().norm().clamp(min=1)
        assert away < (1e-5 if dtype == torch.float32 else 0.01)


def test_channels_last_stays_through_the_network_and_back():
    """One layer that answers in the other layout costs a copy at each of its neighbours."""
    model = make(shortcut="free", image_size=32).to(memory_format=torch.channels_last)
    strayed = []

    def look(name, tensor):
        if tensor.dim() == 4 and not tensor.is_contiguous(memory_format=torch.channels_last):
            strayed.append(name)

    def watch(name, module):
        def hook(_, __, out):
            look(f"{name} forwards", out)
            out.register_hook(lambda g: look(f"{name} backwards", g))

        module.register_forward_hook(hook)

    for name, module in model.decoder.named_modules():
        if name and not isinstance(module, nn.Identity):
            watch(name, module)
    x = torch.rand(4, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    model(x)[0].sum().backward()
    assert not strayed


def test_kaiming_by_the_outgoing_connections_blows_up_a_narrow_head():
    """A head from 32 to 2 channels: the two variances stand as their fans, 16 to 1."""
    cfg = dict(widths=(8, 16, 32), latent_channels=2, shortcut="conv")
    inits = "kaiming", "kaiming_out"
    narrow, wide = (make(init=init, **cfg).encoder.mu.weight.var().item() for init in inits)
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
    with pytest.raises(ValueError, match="one per halving"):
        make(image_size=8, widths=[8, 8, 8, 8], attention=[])


def test_group_norm_takes_any_width():
    for channels in range(1, 130):
        groups = make_norm("group", channels).num_groups
        assert channels % groups == 0 and groups <= 8 and (groups == 1 or channels // groups >= 4)
    assert [make_norm("group", c).num_groups for c in (8, 16, 32, 512)] == [2, 4, 8, 8]
