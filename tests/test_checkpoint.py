import pickle

import pytest
import torch

from vaekit.keep.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
    write_atomic,
    write_history,
)


def test_round_trip_and_the_one_before(tmp_path, capsys):
    path = tmp_path / "last.pt"
    assert newest_valid(tmp_path) is None
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch, "w": torch.arange(3)})
    assert newest_valid(tmp_path)["epoch"] == 2
    path.write_bytes(path.read_bytes()[:-200])  # torn
    assert newest_valid(tmp_path)["epoch"] == 1
    assert "going on from previous.last.pt" in capsys.readouterr().out


def test_nothing_valid_is_an_error_not_a_fresh_start(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="last.pt"):
        newest_valid(tmp_path)


def test_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"w": torch.arange(1000)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000).numpy().tobytes()) + 4000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="last.pt"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/vaekit-evil", "w"))


def test_code_in_a_checkpoint_is_refused_not_run(tmp_path):
    torch.save({"format": 1, "w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="evil.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="pickled.pt"):
        load_checkpoint(tmp_path / "pickled.pt")


def test_other_format_is_named(tmp_path):
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path / "new.pt")


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_failed_checkpoint_write_keeps_a_valid_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"epoch": 1})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "last.pt", {"epoch": 2})
    monkeypatch.undo()
    assert newest_valid(tmp_path)["epoch"] == 1


def test_history_columns_are_the_union(tmp_path):
    write_history(tmp_path / "history.csv", [{"epoch": 1, "a": 2}, {"epoch": 2, "b": 3}])
    assert (tmp_path / "history.csv").read_text() == "epoch,a,b\n1,2,\n2,,3\n"
