"""Splits in memory, and the batches that are cut from them."""

import pytest
import torch
from films import assert_apart, load, make, splits

from vaekit import data


def test_summary(tmp_path, tiny_sets):
    text = load(make(tmp_path / "set")).summary()
    assert [line.split() for line in text.splitlines()[1:5]] == [
        ["images", "patients", "NORMAL", "PNEUMONIA"],
        ["train", "40", "20", "20", "20"],
        ["val", "8", "4", "4", "4"],
        ["test", "12", "6", "6", "6"],
    ]
    assert str(tmp_path) not in text
    assert repr(load(tmp_path / "set")) == text


def tensors(n=6, shape=(1, 16, 16)):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)


def test_from_tensors():
    parts = tensors(6), tensors(3), tensors(4)
    own = data.Data.from_tensors(*parts)
    assert [len(split) for split in splits(own)] == [6, 3, 4]
    assert torch.equal(own.train.images, parts[0]) and own.source == "tensors"
    assert_apart(own)
    assert own.train.to_device("cpu") is own.train.images  # never a copy
    assert own.hash == data.Data.from_tensors(*parts).hash
    labels = [[0, 1] * 3, [0] * 3, [1] * 4]
    named = data.Data.from_tensors(*parts, labels=labels, classes=["a", "b"])
    assert named.hash != own.hash and named.classes == ["a", "b"]
    assert named.train.labels.tolist() == [0, 1] * 3
    other = data.Data.from_tensors(tensors(6), tensors(4), tensors(3))
    assert other.hash != own.hash


@pytest.mark.parametrize(
    "train, extra, message",
    [
        (tensors().float(), {}, "uint8"),
        (tensors()[0], {}, "should be a tensor"),
        (tensors()[:0], {}, "N > 0"),
        (tensors(6, (1, 8, 8)), {}, "1, 8, 8"),
        (tensors(6, (1, 16, 8)), {}, "1, 16, 16"),
        (tensors(), {"labels": [[0], [0], [0]]}, "lengths"),
        (tensors(), {"labels": [[0] * 6, [1] * 3, [2] * 3], "classes": ["a"]}, "labels run"),
    ],
)
def test_from_tensors_refuses(train, extra, message):
    with pytest.raises(ValueError, match=message):
        data.Data.from_tensors(train, tensors(3), tensors(3), **extra)


@pytest.fixture
def split():
    return data.Data.from_tensors(tensors(10), tensors(3), tensors(3)).train


def test_batches(split):
    got = list(data.batches(split, 4))
    assert [len(x) for x in got] == [4, 4, 2]
    assert all(x.dtype == torch.float32 for x in got)
    torch.testing.assert_close(torch.cat(got), split.images / 255)
    rgb = data.Data.from_tensors(*[tensors(4, (3, 16, 16))] * 3).train
    x = next(data.batches(rgb, 4, channels_last=True))
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, rgb.images / 255)


def test_order_and_flip_stay_aligned(split):
    order = torch.tensor([7, 2, 2, 9, 0])
    flip = torch.tensor([True, False, True, False, True])
    got = torch.cat(list(data.batches(split, 2, order=order, flip=flip)))
    want = split.images[order] / 255
    want[flip] = want[flip].flip(-1)
    torch.testing.assert_close(got, want)
    assert torch.equal(split.images, tensors(10))  # nothing was mirrored in place


def test_images_are_moved_and_the_border_repeated(split):
    shift = torch.tensor([[1, -2]] * 4 + [[0, 0]] * 6)
    plain = torch.cat(list(data.batches(split, 3)))
    got = torch.cat(list(data.batches(split, 3, shift=shift)))
    side = plain.shape[-1]
    down = plain[:4, :, [0, *range(side - 1)]]  # by one row
    expected = down[..., [*range(2, side), side - 1, side - 1]]  # to the left by two columns
    assert torch.equal(got[:4], expected) and torch.equal(got[4:], plain[4:])


def test_batches_refuses_at_the_call(split):
    empty = data.Split(split.images[:0], split.labels[:0], [], [], [])
    with pytest.raises(ValueError, match="no images"):
        data.batches(empty, 4)
    with pytest.raises(ValueError):
        data.batches(split, 0)
    for order in ([0, 10], [-1]):
        with pytest.raises(ValueError, match="order"):
            data.batches(split, 4, order=torch.tensor(order))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_batches(split, monkeypatch, resident):
    if not resident:
        monkeypatch.setattr(data, "ON_DEVICE", 0.0)
    order, flip = torch.arange(10).flip(0), torch.arange(10) % 2 == 0
    got = torch.cat(list(data.batches(split, 4, "cuda", order=order, flip=flip)))
    want = torch.cat(list(data.batches(split, 4, "cpu", order=order, flip=flip)))
    assert got.device.type == "cuda" and split.to_device("cuda") is split.to_device("cuda")
    assert split.to_device("cuda").is_cuda == resident
    torch.testing.assert_close(got.cpu(), want)
