import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.scorers.checkpoint import state_of, taken_for


class Evil:
    """Runs what it says as it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_of_torch_is_read_in_its_old_and_its_new_format(tmp_path, zipped, mmap):
    file = tmp_path / "model.pth"
    torch.save({"a": torch.arange(3)}, file, _use_new_zipfile_serialization=zipped)
    assert state_of(file, mmap=mmap)["a"].tolist() == [0, 1, 2]


def test_a_safetensors_is_read(tmp_path):
    save_file({"a": torch.arange(3)}, tmp_path / "model.safetensors")
    assert state_of(tmp_path / "model.safetensors")["a"].tolist() == [0, 1, 2]


def test_what_a_file_would_run_is_not_run_and_nobody_is_told_to_run_it(tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps({"a": Evil(tmp_path / "ran")}, protocol=2))
    with (
        pytest.raises(RuntimeError, match=r"is not the model: .*holds weights and nothing else; give the pub") as told,
        taken_for("the model", file),
    ):
        state_of(file)
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(told.value)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4"]
)
def test_what_is_no_file_of_weights_is_refused_in_one_line_with_a_remedy(tmp_path, content, mmap):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    refused = pytest.raises(RuntimeError, match=r"model\.pth is not the model: .+; give the published file")
    with refused as told, taken_for("the model", file):
        state_of(file, mmap=mmap)
    assert "\n" not in str(told.value)
    assert "torch.save" not in str(told.value)
