import pytest
import torch

from vaekit.keep.checkpoint import (
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


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_history_columns_are_the_union(tmp_path):
    write_history(tmp_path / "history.csv", [{"epoch": 1, "a": 2}, {"epoch": 2, "b": 3}])
    assert (tmp_path / "history.csv").read_text() == "epoch,a,b\n1,2,\n2,,3\n"
