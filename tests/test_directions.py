"""Paths keep their ends, directions point where the codes differ, and a probe is not fooled."""

import pytest
import torch
from test_metrics import CFG

import vaekit
from vaekit.model import VAE
from vaekit.priors import directions


def two_classes(n: int, gap: float, seed: int = 0):
    """Codes (n, 3, 2, 2) with noise 1, `gap` apart along one element, and their labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    mu = torch.randn(n, 3, 2, 2, generator=g)
    mu[:, 1, 0, 1] += gap * labels
    return mu, labels


def test_interpolation():
    a, b = torch.randn(2, 3, 4, 4)
    b = b * a.norm() / b.norm()
    for how in ("linear", "spherical"):
        path = directions.interpolate(a, b, 7, how)
        assert path.shape == (7, 3, 4, 4)
        assert torch.equal(path[0], a)
        torch.testing.assert_close(path[-1], b)
    norms = path.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, a.norm().expand(7))
    assert directions.interpolate(a, b, 3)[1].norm() < 0.9 * a.norm()
    torch.testing.assert_close(directions.interpolate(a, a, 3, "spherical")[1], a)
    with pytest.raises(ValueError, match="linear, spherical"):
        directions.interpolate(a, b, 3, "cubic")


def test_half_way_to_the_nearest_neighbour():
    mu = torch.tensor([0.0, 1.0, 5.0, 7.0]).view(4, 1, 1, 1)
    assert directions.between_neighbours(mu).flatten().tolist() == [0.5, 0.5, 6.0, 6.0]


def test_principal_directions():
    axis = torch.zeros(4, 2, 2)
    axis[1, 0, 1] = 1
    mu = 5 * torch.randn(200, 1, 1, 1) * axis + 0.1 * torch.randn(200, 4, 2, 2) + 1
    mean, axes, std = directions.principal_directions(mu, 3)
    torch.testing.assert_close(mean, mu.mean(0))
    torch.testing.assert_close(axes.flatten(1).norm(dim=1), torch.ones(3))
    assert (axes[0] * axis).sum().abs() > 0.99
    assert std[0].item() == pytest.approx(mu[:, 1, 0, 1].std().item(), rel=0.01)
    with pytest.raises(ValueError, match="n_components=17"):
        directions.principal_directions(mu, 17)


def test_traverse():
    model = VAE(vaekit.preset(**CFG)).eval()
    mean, direction = torch.zeros(model.latent_shape), torch.ones(model.latent_shape)
    images = directions.traverse(model, mean, direction, 0.5, [-2, 0, 2])
    z = torch.stack([-direction, mean, direction])
    torch.testing.assert_close(images, model.decode(z).detach(), atol=1e-5, rtol=1e-4)


def test_class_direction_is_the_difference_of_the_means():
    mu = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 4.0], [1.0, 8.0], [9.0, 9.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    direction, std = directions.class_direction(mu, labels, 0, 1)  # (1, 0) -> (1, 6)
    torch.testing.assert_close(direction, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(std, torch.tensor([0.0, 0.0, 4.0, 8.0, 9.0]).std())
    back, same = directions.class_direction(mu, labels, 1, 0)
    assert torch.equal(back, -direction) and torch.equal(same, std)
    for a, b in ((0, 3), (1, 1)):
        with pytest.raises(ValueError, match=r"two different ones of \[0, 1, 2\]"):
            directions.class_direction(mu, labels, a, b)


def test_a_probe_reads_what_is_there_and_no_more():
    mu, labels = two_classes(400, gap=8.0)
    clear = directions.probe(mu[:300], labels[:300], mu[300:], labels[300:])
    assert clear.accuracy == 1 == clear.high and clear.n == 100 and clear.majority == 0.5
    assert clear.low == pytest.approx(100 / (100 + 1.959964**2), abs=1e-5)  # Wilson, no error
    mu, labels = two_classes(400, gap=0.0)
    blind = directions.probe(mu[:300], labels[:300], mu[300:], labels[300:])
    assert blind.low < 0.5 < blind.high


def test_a_probe_is_compared_with_the_commonest_training_class():
    mu, _ = two_classes(40, gap=0.0)
    train, test = torch.tensor([1] * 25 + [0] * 5), torch.tensor([0] * 7 + [1] * 3)
    found = directions.probe(mu[:30], train, mu[30:], test)
    assert found.majority == pytest.approx(0.3)
    with pytest.raises(ValueError, match="two images of two classes"):
        directions.probe(mu[:30], torch.ones(30, dtype=torch.long), mu[30:], test)
