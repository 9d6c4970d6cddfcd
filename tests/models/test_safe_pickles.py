"""What DeepSpeed puts into its checkpoints passes; what could run code does not, and does not run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from segclip.models.safe_pickles import ALLOWED, check_pickles, write_stages_by_value

FP16 = {
    "init_scale": 4,
    "scale_window": 2,
    "min_scale": 1,
    "delayed_shift": 2,
    "consecutive_hysteresis": False,
}


def test_what_deepspeed_writes_passes(tmp_path: Path) -> None:
    write_stages_by_value()
    content = {
        "loss_scaler": [
            CreateLossScaler(torch.float16, 1.0, True, FP16),
            CreateLossScaler(torch.float32, 1.0, False, None),
        ],
        "zero_stage": ZeroStageEnum.gradients,
        "param_slice_mappings": [{"a": fragment_address(numel=2, start=0)}],
        "tensors": [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(1))],
        "shape": torch.Size([1, 2]),
    }
    (tmp_path / "pieces").mkdir()
    path = tmp_path / "pieces" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save(content, path)
    check_pickles(tmp_path)
    # Every entry of the list is there for something.
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) == ALLOWED


def test_stages_are_written_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python 3.11.2 has it, which Debian 12 brings.
    by_name = lambda stage, protocol: (getattr, (type(stage), stage.name))  # noqa: E731
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", by_name)
    assert b"getattr" in pickle.dumps(ZeroStageEnum.gradients)
    write_stages_by_value()
    written = pickle.dumps(ZeroStageEnum.gradients)
    assert b"getattr" not in written
    assert pickle.loads(written) is ZeroStageEnum.gradients


class Evil:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.marker), "w"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def zipped(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in records.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {"a": torch.zeros(1)}, "x": Evil(marker)}, path)
    torch.load(path, weights_only=False)["x"].close()  # it would
    marker.unlink()
    with pytest.raises(ValueError) as caught:
        check_pickles(tmp_path)
    assert str(caught.value) == (
        f"checkpoint file {path} names {open.__module__}.open, which could run code when it is loaded, so it is not; "
        "use a checkpoint that you trust; to train anew, give another run_dir"
    )
    assert not marker.exists()


def test_each_other_way_to_hide_code_is_refused(tmp_path: Path, marker: Path) -> None:
    evil = Evil(marker)
    ways = {
        "a bare pickle": pickle.dumps(evil),
        "torch's old format": saved(evil, _use_new_zipfile_serialization=False),
        "a newer protocol": saved(evil, pickle_protocol=4),
        "the oldest protocol": zipped({"data.pkl": pickle.dumps(evil, protocol=0), "version": b"3\n"}),
        "instance opcode": zipped({"data.pkl": b"(S'x'\nios\nsystem\n.", "version": b"3\n"}),
        "cut": zipped({"data.pkl": pickle.dumps([1], protocol=2)[:-1], "version": b"3\n"}),
        "no data": zipped({"version": b"3\n"}),
        # A program of TorchScript, which torch.load would run.
        "a program": zipped(
            {"data.pkl": pickle.dumps([1], protocol=2), "constants.pkl": b"", "version": b"3\n"}
        ),
        "no file of torch": b"<html>",
        "empty": b"",
    }
    for name, content in ways.items():
        path = tmp_path / "x_states.pt"
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"checkpoint file .*x_states\.pt (is not one|names io\.open)"
        ) as caught:
            check_pickles(tmp_path)
        assert "\n" not in str(caught.value), name
        assert not marker.exists(), name
