"""The closed reader of torch's zip files: what it reads, and that nothing in a file is ever run."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from clip.checkpoints import archives
from clip.checkpoints.archives import read_archive
from clip.errors import CheckpointError


def _zip(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"m/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"m/{name}", data)
    return path


def _tensor_program(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """What torch pickles for one float tensor over storage "0"."""

    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + ints((count,))[1:-1] + b"tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return b"\x80\x02" + rebuild + storage + ints((offset,))[1:-1] + ints(size) + ints(stride) + b"\x89NtR."


def test_reads_what_torch_save_writes(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        "epoch": 3,
        "name": "run",
        "large": 2**40,
        "nothing": None,
        "state_dict": collections.OrderedDict(
            weight=torch.nn.Parameter(torch.randn(2, 3)),
            half=torch.randn(5).half(),
            brain=torch.randn(5).bfloat16(),
            count=torch.tensor(7),
            flags=torch.tensor([True, False]),
            transposed=shared.t(),
            slice=shared[1:, 2:],
            empty=torch.empty(0, 3),
        ),
        "optimizer": {"lr": 1e-3, "betas": (0.9, 0.98), "groups": [{"params": [0, 1]}]},
    }
    torch.save(content, tmp_path / "file.pt")
    archive = read_archive(tmp_path / "file.pt")
    assert not archive.is_torchscript
    weights = archive.content.pop("state_dict")
    for key, value in content.pop("state_dict").items():  # type: ignore[attr-defined]
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value), key
    assert archive.content == content


def test_numpy_scalars_of_training_scripts_do_not_stand_in_the_way(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "loss": np.float64(0.5)}, tmp_path / "file.pt")
    assert torch.equal(read_archive(tmp_path / "file.pt").content["state_dict"]["w"], torch.ones(1))


def test_tensors_are_views_of_the_file_and_writing_to_them_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    read_archive(path).content["w"].fill_(1)
    assert path.read_bytes() == before


def test_a_storage_at_an_odd_offset_is_copied(tmp_path: Path) -> None:
    values = struct.pack("<4f", 1, 2, 3, 4)
    for padding in range(4):  # the name before the storage moves it
        path = _zip(tmp_path / f"{padding}.pt", _tensor_program((2, 2), (2, 1)), {"x" * padding: b"", "0": values})
        assert read_archive(path).content.tolist() == [[1, 2], [3, 4]]


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_executed(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _zip(tmp_path / "file.pt", pickle.dumps({"w": _Evil()}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"'(posix|nt)\.system', which .* is not executed"):
        read_archive(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "torch load",
        "torch.serialization load",
        "torch._utils _rebuild_tensor_v2.__globals__",
        "torch nn.Module",
        "clip.checkpoints.archives read_archive",
        "__builtin__ exec",
    ],
)
def test_no_other_name_is_known(tmp_path: Path, name: str) -> None:
    module, attribute = name.split(" ")
    program = b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n)R."
    with pytest.raises(CheckpointError, match="refers to"):
        read_archive(_zip(tmp_path / "file.pt", program))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02}", "opcode|no end|exhausted|STOP"),
        (b"\x80\x02.", "IndexError"),
        (b"\x80\x02(t(u.", "malformed"),
        (b"\x80\x02h\x05.", "KeyError"),
        (b"\x80\x02\x8c\x01xQ.", "malformed"),
        (b"\x80\x02I12\n.", "opcode INT"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "malformed"),
        (b"\x80\x02K\x01K\x02R.", "tuple should be"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "is called"),
        (b"\x80\x02]}b.", "given a state"),
        (b"\x80\x02}(K\x01u.", "malformed"),
        (b"\xff\xff", "malformed"),
        (b"", "no end|exhausted"),
    ],
)
def test_malformed_programs_are_refused(tmp_path: Path, program: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_archive(_zip(tmp_path / "file.pt", program))


def test_a_huge_memo_index_costs_nothing(tmp_path: Path) -> None:
    # Python's own unpickler allocates an array of that length here.
    program = b"\x80\x02Nr\xff\xff\xff\x7f."
    assert read_archive(_zip(tmp_path / "file.pt", program)).content is None


@pytest.mark.parametrize(
    ("size", "stride", "offset", "count"),
    [
        ((1 << 40,), (0,), 0, 4),  # an endless view of one number
        ((4,), (1,), 1, 4),
        ((2, 2), (2, 2), 0, 4),
        ((-1,), (1,), 0, 4),
        ((4,), (-1,), 0, 4),
        ((2,), (1,), -1, 4),
        ((4,), (1, 1), 0, 4),
        ((1,), (1,), 0, 1 << 40),
        ((1,), (1,), 0, -1),
        ((1 << 32, 1 << 32), (1, 1), 0, 4),
        ((1,) * 70, (1,) * 70, 0, 4),
    ],
)
def test_tensors_stay_within_their_storage(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int
) -> None:
    path = _zip(tmp_path / "file.pt", _tensor_program(size, stride, offset, count), {"0": bytes(16)})
    with pytest.raises(CheckpointError):
        read_archive(path)


def test_many_large_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1000).expand(1, 1000)] * 3, tmp_path / "fine.pt")
    one = _tensor_program((1000,), (1,), count=1000)[2:-1]
    path = _zip(tmp_path / "file.pt", b"\x80\x02(" + one * 100 + b"t.", {"0": bytes(4000)})
    assert len(read_archive(tmp_path / "fine.pt").content) == 3
    with pytest.raises(CheckpointError, match="more bytes than the file has"):
        read_archive(path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"N" * (1 << 26))
    with pytest.raises(CheckpointError, match=r"67,108,864 bytes; the limit is"):
        read_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", _tensor_program((4,), (1,)))
        archive.writestr("m/data/0", bytes(1 << 20))
    with pytest.raises(CheckpointError, match="compressed"):
        read_archive(path)


@pytest.mark.parametrize("keep", [0, 10, 100, 1000, -1, -30, -200])
def test_cut_files_are_refused(tmp_path: Path, keep: int) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "file.pt")
    data = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="fetch it again"):
        read_archive(tmp_path / "file.pt")


def test_foreign_zip_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not one of torch's: it holds 0 files data\.pkl"):
        read_archive(tmp_path / "x.zip")


def test_big_endian_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="big-endian"):
        read_archive(_zip(tmp_path / "file.pt", b"\x80\x02N.", byteorder=b"big"))


def test_a_module_that_contains_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_OBJECTS", 10_000)
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\0\0\0ah\x00sb."
    with pytest.raises(CheckpointError, match="contains itself"):
        read_archive(_zip(tmp_path / "file.pt", itself, **{"constants.pkl": b""}))
    twice = b"c__torch__\nM\n)\x81}b"  # each level refers twice to the one below: 2^40 paths
    for level in range(40):
        index = bytes([level])
        twice += (
            b"q" + index + b"0" * 0 + b"c__torch__\nM\n)\x81}(X\x01\0\0\0ah" + index + b"X\x01\0\0\0bh" + index + b"ub"
        )
    with pytest.raises(CheckpointError, match="more than 10,000 parts"):
        read_archive(_zip(tmp_path / "dag.pt", b"\x80\x02" + twice + b".", **{"constants.pkl": b""}))


def test_the_reader_needs_no_unpickler() -> None:
    source = Path(archives.__file__).read_text()
    assert "torch.load" not in source.replace("without torch.load", "")
    assert "import pickle\n" not in source
    assert "Unpickler" not in source
    assert sys.modules["clip.checkpoints.archives"] is archives
