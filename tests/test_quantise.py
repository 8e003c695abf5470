"""Quantised codes: rounding, codebooks, training, and a prior over them."""

import math

import pytest
import torch
from tiny import blobs, small

import vaekit
from vaekit import losses, sample
from vaekit.checks import check_data
from vaekit.data import Data
from vaekit.judge import comparison
from vaekit.lessons import rates
from vaekit.model import VAE
from vaekit.priors import tokens
from vaekit.quantise import DEAD, FSQ, VQ, code_use

KINDS = {"fsq": {"levels": (4, 3)}, "vq": {"codebook_size": 12}}
TINY = {"width": 16, "depth": 1, "heads": 2}


def quantised(kind: str, **changes):
    return small(latent=kind, **{"epochs_phase1": 1, "epochs_phase2": 2, **KINDS[kind], **changes})


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return VAE(quantised(request.param)).eval()


# ---- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantiser", [FSQ((4, 3)), VQ(12, 2)], ids=["fsq", "vq"])
class TestBoth:
    def test_the_gradient_passes_straight_through(self, quantiser):
        z = torch.randn(2, 2, 3, 3, requires_grad=True)
        weight = torch.randn(2, 2, 3, 3)
        (quantiser.eval()(z) * weight).sum().backward()
        assert torch.equal(z.grad, weight)

    def test_every_index_has_one_code_which_is_nearest_to_itself(self, quantiser):
        indices = torch.arange(12).view(1, 3, 4)
        codes = quantiser.lookup(indices)
        assert codes.shape == (1, 2, 3, 4)
        assert torch.equal(quantiser.indices(codes), indices)
        assert torch.equal(quantiser.eval()(codes), codes)
        assert len(codes.movedim(1, -1).reshape(-1, 2).unique(dim=0)) == 12

    def test_none_is_nearer(self, quantiser):
        z = torch.rand(1, 2, 5, 5) * 4 - 2
        every = quantiser.lookup(torch.arange(12).view(1, 1, 12))[0, :, 0].T  # (12, 2)
        steps = torch.ones(2)
        if isinstance(quantiser, FSQ):  # each channel is measured in its own steps
            steps = (quantiser.levels.flatten() - 1) / 2
        gaps = (z[0].flatten(1).T[:, None] - every).abs() * steps
        assert torch.equal(gaps.square().sum(2).argmin(1).view(1, 5, 5), quantiser.indices(z))


def test_fsq_is_the_librarys():
    reference = pytest.importorskip("vector_quantize_pytorch").FSQ
    levels = [8, 5, 5, 5]
    theirs = reference(levels, preserve_symmetry=True)
    ours = FSQ(tuple(levels))
    z = torch.randn(3, 4, 6, 6, requires_grad=True)
    codes, indices = theirs(z)
    mine = ours(ours.bound(z))
    torch.testing.assert_close(mine, codes)
    assert torch.equal(ours.indices(ours.bound(z)), indices.long())
    weight = torch.randn_like(mine)
    (a,) = torch.autograd.grad((codes * weight).sum(), z, retain_graph=True)
    (b,) = torch.autograd.grad((mine * weight).sum(), z)
    torch.testing.assert_close(a, b)


def test_a_step_of_the_codebook_is_the_librarys():
    reference = pytest.importorskip("vector_quantize_pytorch").VectorQuantize
    theirs = reference(3, 5, decay=0.97, eps=1e-12, accept_image_fmap=True, sync_codebook=False)
    ours = VQ(5, 3)
    book = theirs._codebook
    ours.codebook.copy_(book.embed[0])
    ours.use.fill_(20.0)  # none is dead
    ours.sums.copy_(20.0 * ours.codebook)
    book.cluster_size.fill_(20.0)
    book.embed_avg.copy_(20.0 * book.embed)
    z = torch.randn(4, 3, 5, 5, requires_grad=True)
    codes, indices, _ = theirs(z)
    assert torch.equal(ours.indices(z), indices)
    torch.testing.assert_close(ours.lookup(indices), codes)  # theirs are from before the step
    ours(z)
    torch.testing.assert_close(ours.codebook, book.embed[0])


def test_a_codebook_learns_only_where_gradients_reach_the_encoder():
    quantiser, z = VQ(4, 2), torch.randn(2, 2, 3, 3)
    before = quantiser.codebook.clone()
    quantiser(z)
    with torch.no_grad():
        quantiser(z.requires_grad_())
    quantiser.eval()(z)
    assert torch.equal(quantiser.codebook, before)
    quantiser.train()(z)
    assert not torch.equal(quantiser.codebook, before)


def learned(dead: float, monkeypatch) -> dict:
    """Use of 16 codes after 60 steps on eight clusters; all codes begin at one place far away."""
    monkeypatch.setattr("vaekit.quantise.DEAD", dead)
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(8, 2, generator=generator)
    quantiser = VQ(16, 2)
    quantiser.codebook.copy_(30 + 0.01 * torch.randn(16, 2, generator=generator))
    quantiser.use.fill_(1.0)
    quantiser.sums.copy_(quantiser.codebook)
    for _ in range(60):
        chosen = torch.randint(8, (64,), generator=generator)
        x = centres[chosen] + 0.1 * torch.randn(64, 2, generator=generator)
        quantiser(x.T.reshape(1, 2, 8, 8).requires_grad_())
    return code_use(quantiser.indices(x.T.reshape(1, 2, 8, 8)), 16)


def test_a_codebook_collapses_where_dead_codes_stay_dead(monkeypatch):
    collapsed, cured = learned(0.0, monkeypatch), learned(DEAD, monkeypatch)
    assert collapsed["codes_used"] < 8 <= cured["codes_used"]
    assert cured["perplexity"] > 6 > collapsed["perplexity"]


def test_code_use():
    found = code_use(torch.tensor([0, 1, 0, 1, 5, 5]), 8)
    assert found["codes_used"] == 3 and found["perplexity"] == pytest.approx(3)
    assert code_use(torch.zeros(9, dtype=torch.long), 4)["perplexity"] == pytest.approx(1)


# ---- the model, its loss and its training --------------------------------------------------------


def test_encode_decode_and_indices(model):
    x = blobs(3, seed=4)
    mu, logvar = model.encode(x)
    assert mu.shape == (3, *model.latent_shape) and logvar.isneginf().all()
    assert torch.equal(model.reparameterize(mu, logvar), mu)
    indices = model.code_indices(x)
    assert indices.shape == (3, 4, 4) and indices.max() < 12
    expected = model.reconstruct(x)
    assert torch.equal(model.decode_indices(indices), expected)
    assert torch.equal(model.decode(model.quantiser(mu)), expected)  # rounding twice is once
    assert VAE(quantised("fsq", latent_init_gain=0.1)).encoder.logvar is None
    for wrong in (indices - 12, indices + 12, indices[:, :2]):
        with pytest.raises(ValueError, match="indices"):
            model.decode_indices(wrong)


def test_a_continuous_model_has_no_indices():
    model = VAE(small())
    for ask in (model.code_indices, model.decode_indices):
        with pytest.raises(ValueError, match="fsq or vq"):
            ask(blobs(2, 0))


def test_the_loss(model):
    x = blobs(3, seed=4) / 255
    x_hat, mu, logvar = model(x)
    loss = losses.vae_loss(x_hat, x, mu, logvar, model.cfg, 0.5, quantiser=model.quantiser)
    terms = {name: value.item() for name, value in loss.terms.items()}
    assert terms["kl"] == pytest.approx(16 * math.log(12))
    nearest = model.quantiser.nearest(mu)
    assert terms["rounding"] == pytest.approx((mu - nearest).square().mean().item(), rel=1e-5)
    weight = 0.25 if model.cfg.latent == "vq" else 0.0
    recon = terms["l1"] + 0.5 * terms["ssim"] + weight * terms["rounding"]
    assert terms["recon"] == pytest.approx(recon, rel=1e-5)
    share = 0.5 * 16 * math.log(12) / mu[0].numel()
    assert loss.total.item() == pytest.approx(recon + share, rel=1e-5)
    loss.total.backward()
    assert model.encoder.mu.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_fit_counts_its_codes(kind, data):
    run = vaekit.fit(quantised(kind), data, verbose=False)
    assert ("quantiser.codebook" in run.model.state_dict()) == (kind == "vq")
    row = run.history[-1]
    assert 1 <= row["val_perplexity"] <= row["val_codes_used"] <= 12
    assert row["val_kl"] == pytest.approx(16 * math.log(12), rel=1e-5)


def test_a_codebook_larger_than_an_epoch_warns(recwarn):
    data = Data.from_tensors(blobs(3, 1), blobs(2, 2), blobs(2, 3))  # 48 places
    check_data(data, quantised("vq", codebook_size=48))
    check_data(data, small(codebook_size=512))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="49 codes, and an epoch of 3 images has only 48 places"):
        check_data(data, quantised("vq", codebook_size=49))


# ---- who else takes a model ----------------------------------------------------------------------


def test_rates_samples_and_titles(model):
    images = blobs(6, seed=5)
    point = rates.measure(model, images)
    assert point.rate == pytest.approx(16 * math.log(12), rel=1e-5)
    assert point.mse == pytest.approx(point.mse_of_mean)
    with pytest.raises(ValueError, match="no noise to judge"):
        vaekit.diagnose(model, images)
    z = vaekit.sample_latents(model, 50)
    assert torch.equal(model.quantiser.lookup(model.quantiser.indices(z)), z)
    assert code_use(model.quantiser.indices(z), 12)["codes_used"] == 12
    z = vaekit.sample_latents(model, 3, "gaussian", images)  # rounded as it is decoded
    assert torch.equal(model.decode(z), model.decode(model.quantiser(z)))
    assert comparison.title_of(model) == "VAE, 16 places, 12 codes"


def test_codes_can_be_drawn_from_quantised_models_only(model):
    images = blobs(10, seed=6)
    z = vaekit.sample_latents(model, 3, "codes", images)
    assert sample.decode_all(model, z).shape == (3, 1, 16, 16)
    with pytest.raises(ValueError, match="fit_on"):
        vaekit.sample_latents(model, 3, "codes")
    with pytest.raises(ValueError, match="fsq"):
        vaekit.sample_latents(VAE(small()), 3, "codes", images)


# ---- the prior over codes ------------------------------------------------------------------------


def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    net = tokens.CodeTransformer(7, 6, **TINY).eval()
    rows = torch.randint(7, (1, 6))
    changed = rows.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 7
    with torch.no_grad():
        a, b = net(rows), net(changed)
    assert a.shape == (1, 6, 7)
    torch.testing.assert_close(a[:, :4], b[:, :4])  # row 3 is for token 3
    assert (a[:, 4:] - b[:, 4:]).abs().min(2).values.min() > 0
    torch.testing.assert_close(net(rows[:, :2]), a[:, :3])


def test_the_rate_of_known_distributions():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.randint(4, (400, 3), generator=generator)
    net, _ = tokens.fit_tokens(uniform, 4, epochs=6, **TINY)
    bits = tokens.nats_of(net, uniform, uniform.new_zeros(400)).mean().item() / math.log(2)
    assert bits == pytest.approx(3 * 2, abs=0.1)  # log2 4 a token
    repeated = uniform[:, :1].expand(-1, 3)
    _, history = tokens.fit_tokens(repeated, 4, epochs=12, dropout=0.0, lr=3e-3, **TINY)
    assert history[-1]["held_bits"] == pytest.approx(2, abs=0.3)  # only the first is news


def test_early_stopping_keeps_the_best_epoch():
    rows = torch.randint(16, (20, 4))
    net, history = tokens.fit_tokens(rows, 16, epochs=60, patience=3, lr=1e-2, **TINY)
    held = [row["held_bits"] for row in history]
    assert len(held) == min(held.index(min(held)) + 4, 60) < 60
    with pytest.raises(ValueError, match="4 images"):
        tokens.fit_tokens(rows[:4], 16)


def test_drawing_a_token():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(200, 4)
    generator = torch.Generator().manual_seed(0)
    assert set(tokens.draw(logits, 0.0, 0, generator).flatten().tolist()) == {1}
    assert set(tokens.draw(logits, 1.0, 2, generator).flatten().tolist()) == {1, 2}
    hot = tokens.draw(logits, 100.0, 0, generator).flatten().bincount()
    assert hot.min() > 30


def test_a_class_is_drawn_when_it_is_asked_for():
    """Codes that are the class, at every place."""
    torch.manual_seed(0)
    model = VAE(quantised("fsq"))
    labels = torch.arange(80) % 2
    rows = labels[:, None].expand(-1, 4)
    fit = dict(epochs=12, patience=12, lr=3e-3, **TINY)
    net, history = tokens.fit_tokens(rows, 12, labels, **fit)
    prior = tokens.CodePrior(net, model.quantiser, (2, 2), history)
    for k in (0, 1):
        drawn = prior.sample_indices(3, temperature=0.0, label=k)
        assert torch.equal(drawn, torch.full((3, 2, 2), k))
    indices = rows.view(-1, 2, 2)
    told, misled = prior.bits(indices, labels).mean(), prior.bits(indices, 1 - labels).mean()
    assert told + 1 < misled and told < prior.bits(indices).mean() < misled
    again = prior.sample(4, seed=3, top_k=5), prior.sample(4, seed=3, top_k=5)
    assert torch.equal(*again) and again[0].shape == (4, 2, 2, 2)
    with pytest.raises(ValueError, match="temperature=-1"):
        prior.sample(1, temperature=-1)
