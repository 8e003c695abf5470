"""The critic: its scores, when and how strongly it acts, and which epochs are kept."""

import pytest
import torch
from tiny import JUDGED, small

from vaekit.critic import Critic, add_share
from vaekit.keep.guards import GuardedTrainer
from vaekit.schedules import critic_share_at, decoder_only, final_objective
from vaekit.train import Trainer, train


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 33, 33), (1, 1, 64, 64)])
def test_a_score_a_patch(shape):
    score = Critic(shape[1])(torch.rand(shape))
    side = (shape[-1] + shape[-1] % 2) // 4
    assert score.shape == (shape[0], 1, side, side)


def test_it_learns_to_tell_noise_from_flat_images():
    critic = Critic(1)
    flat, noise = torch.full((4, 1, 16, 16), 0.5), torch.rand(4, 1, 16, 16)
    before = critic.loss(noise, flat).item()
    for _ in range(40):
        critic.optimizer.zero_grad()
        critic.loss(noise, flat).backward()
        critic.optimizer.step()
    assert critic.loss(noise, flat) < 0.2 < before
    # a step along the gradient makes it look less real
    x = (flat + noise) / 2
    assert critic(x + 0.001 * critic.gradient(x).sign()).mean() < critic(x).mean()


def test_the_share_is_a_share_of_length():
    gradient, other = torch.randn(2, 1, 8, 8), 1e-6 * torch.randn(2, 1, 8, 8)
    added = add_share(gradient, other, 0.5) - gradient
    torch.testing.assert_close(added.norm(), 0.5 * gradient.norm())
    torch.testing.assert_close(added / added.norm(), other / other.norm())


def test_when_it_pulls():
    cfg = small(**JUDGED)
    assert [decoder_only(cfg, e) for e in (0, 3.9, 4, 7)] == [False, False, True, True]
    assert [critic_share_at(cfg, e) for e in (3, 4, 5, 5.5, 6, 7)] == [0, 0, 0, 0.25, 0.5, 0.5]
    assert [final_objective(cfg, e) for e in (3, 5, 6, 7)] == [False, False, True, True]
    assert not decoder_only(small(), 5)


def test_the_encoder_rests_and_the_decoder_is_pulled(data):
    trainer = Trainer(small(**JUDGED), data)
    x = data.train.images[:8].float() / 255
    for epoch, encoder_rests in ((1.0, False), (7.0, True)):
        trainer.zero_grad()
        trainer.beta = 0.001
        terms = trainer.gradients(x, epoch)
        resting = all(p.grad is None for p in trainer.raw.encoder.parameters())
        assert resting == encoder_rests == bool(terms["critic"])
    torch.manual_seed(0)
    trainer.zero_grad()
    trainer.gradients(x, 7.0)
    pulled = trainer.raw.decoder.to_image[-1].weight.grad.clone()
    torch.manual_seed(0)
    trainer.zero_grad()
    trainer.gradients(x, 4.0)  # it learns alone
    assert not torch.allclose(pulled, trainer.raw.decoder.to_image[-1].weight.grad)


def test_a_step_that_is_not_finite_leaves_it_as_it_was(data):
    trainer = GuardedTrainer(small(**JUDGED), data)
    x = data.train.images[:8].float() / 255
    trainer.step(x, 7.0)
    before = {name: value.clone() for name, value in trainer.critic.state_dict().items()}
    torch.nn.init.constant_(trainer.raw.decoder.to_image[-1].bias, float("nan"))
    trainer.step(x, 7.0)
    after = trainer.critic.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_last_epochs_are_kept(data):
    trainer = GuardedTrainer(small(**JUDGED), data)
    train(trainer)
    assert trainer.best.state["epoch"] >= 7
