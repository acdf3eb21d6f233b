"""Weights where they lie: the numbers and the fingerprints that torch gives, and no file believed unchecked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip.checkpoints.archives import read_archive
from clip.checkpoints.files import Checkpoint, Format, fingerprint, read_checkpoint, write_checkpoint
from clip.checkpoints.mapped import _view, map_checkpoint, map_safetensors
from clip.errors import CheckpointError
from clip.model import CLIP
from clip.preprocess import Preprocess

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoints"

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int32, torch.int64)


def _write(model: CLIP, path: Path, dtype: torch.dtype = torch.float32, to: Format = "everyclip", **more: Any) -> Path:
    weights = {k: v.detach().to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    preprocess = Preprocess(size=model.config.image_resolution)
    checkpoint = Checkpoint(config=model.config, state_dict=weights, preprocess=preprocess, source="")
    write_checkpoint(checkpoint, path, to, **more)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_those_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(5, 3) * 100
    tensors = {"odd": torch.ones(1, dtype=torch.int8), "x": values.to(dtype), "none": values[:0], "one": values[0, 0]}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, tmp_path / "file", {"who": "me"})
    found, notes = map_safetensors(tmp_path / "file")
    assert notes == {"who": "me"}
    assert {key: (tensor.shape, tensor.ndim) for key, tensor in found.items()} == {
        key: (tuple(value.shape), value.ndim) for key, value in tensors.items()
    }
    np.testing.assert_array_equal(found["x"].numbers(), tensors["x"].float().numpy(), strict=True)
    rows = np.array([4, 0, 4])
    np.testing.assert_array_equal(found["x"].numbers(rows), tensors["x"].float().numpy()[rows], strict=True)
    assert found["one"].numbers().item() == tensors["one"].item()
    assert f"torch.{found['x'].dtype}" == str(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("which", ["tiny_vit", "tiny_resnet"])
def test_the_fingerprint_is_that_of_torch(
    tmp_path: Path, which: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    path = _write(request.getfixturevalue(which), tmp_path / "model.safetensors", dtype)
    _assert_same_fingerprint(path)


def test_the_fingerprint_of_int8_rows_is_that_of_their_products(tmp_path: Path, tiny_vit: CLIP) -> None:
    path = _write(tiny_vit, tmp_path / "model.safetensors", int8_rows=("token_embedding.weight",))
    _assert_same_fingerprint(path)


def test_the_fingerprint_of_plain_weights_leaves_out_what_is_no_weight(tmp_path: Path, tiny_vit: CLIP) -> None:
    sizes = {key: torch.tensor(7) for key in ("input_resolution", "context_length", "vocab_size")}
    mask = {"attn_mask": torch.zeros(77, 77)}
    save_file({**tiny_vit.state_dict(), **sizes, **mask}, tmp_path / "quickgelu.safetensors")
    _assert_same_fingerprint(tmp_path / "quickgelu.safetensors")


def _assert_same_fingerprint(path: Path) -> None:
    mapped, checkpoint = map_checkpoint(path), read_checkpoint(path)
    assert mapped is not None
    assert mapped.fingerprint() == fingerprint(checkpoint.config, checkpoint.state_dict)
    assert mapped.config == checkpoint.config
    assert mapped.description.preprocess == checkpoint.preprocess
    assert mapped.description.source == checkpoint.source


def test_a_folder_of_openclip_is_read(tmp_path: Path, tiny_vit: CLIP) -> None:
    _assert_same_fingerprint(_write(tiny_vit, tmp_path / "folder", to="openclip"))


@pytest.mark.parametrize("name", ["openai_tiny.pt", "openai_tiny_rn.pt"])
def test_archives_of_openai_are_read(name: str) -> None:
    _assert_same_fingerprint(GOLDEN / name)


def test_an_archive_of_tied_strided_and_empty_tensors_is_read(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"t": base.t(), "rows": base[1::2], "none": base[:0], "bf16": base.bfloat16(), "one": base[2, 3]}
    torch.save(tensors, tmp_path / "file.pt")
    content = read_archive(tmp_path / "file.pt", _view(tmp_path / "file.pt")).content
    for key, value in tensors.items():
        np.testing.assert_array_equal(content[key].numbers(), value.float().numpy(), err_msg=key)
        assert content[key].contents().tobytes() == _bytes(value), key


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# Files that are not what they say -------------------------------------------------------------------------------------


def _file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _entry(**changes: Any) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x02", b"PK\x03\x04" + bytes(100), bytes(1000)),
        *(_file(b"{}", length=2**63), _file(b"{}", length=3), _file(b"[]"), _file(b"{x"), _file(b"\xff\xff")),
        *(_file(b'{"x": 3}'), _file(b'{"x": {}}'), _file(b'{"__metadata__": 3}'), _file(b"[" * 100_000)),
        *(_file(_entry(), bytes(7)), _file(_entry(shape=[3]), bytes(12)), _file(_entry(shape=[-2]), bytes(8))),
        *(_file(_entry(shape=2), bytes(8)), _file(_entry(shape=["2"]), bytes(8)), _file(_entry(shape=[2.0]), bytes(8))),
        *(_file(_entry(dtype="F4"), bytes(8)), _file(_entry(dtype=[]), bytes(8)), _file(_entry(more=1), bytes(8))),
        *(_file(_entry(data_offsets=[-8, 0]), bytes(8)), _file(_entry(data_offsets=[8, 16]), bytes(8))),
        *(_file(_entry(data_offsets=[0]), bytes(8)), _file(_entry(data_offsets=[0, "8"]), bytes(8))),
        *(_file(_entry(data_offsets=[10**30, 10**30 + 8]), bytes(8)), _file(_entry(shape=[10**30, 0]), bytes(8))),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(CheckpointError, match="not a"):
        map_safetensors(tmp_path / "file")
    assert map_checkpoint(tmp_path / "file") is None


def test_a_file_that_was_cut_anywhere_is_left_to_the_reader_that_says_so(tmp_path: Path, tiny_vit: CLIP) -> None:
    data = _write(tiny_vit, tmp_path / "model.safetensors").read_bytes()
    for length in (0, 7, 8, 9, 500, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        assert map_checkpoint(tmp_path / "cut") is None, length


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((b'"version":"1"', b'"version":"2"'), (b'\\"vocab_size\\": 49408', b'\\"vocab_size\\": 49409')),
        *((b'\\"activation\\"', b'\\"activatiom\\"'), (b'\\"size\\": 32', b'\\"size\\": 33')),
    ],
)
def test_a_header_that_contradicts_the_weights_is_refused(
    tmp_path: Path, tiny_vit: CLIP, old: bytes, new: bytes
) -> None:
    path = _write(tiny_vit, tmp_path / "model.safetensors")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    assert map_checkpoint(path) is None
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_int8_rows_without_a_factor_each_are_refused(tmp_path: Path, tiny_vit: CLIP) -> None:
    path = _write(tiny_vit, tmp_path / "model.safetensors", int8_rows=("token_embedding.weight",))
    _spoil(path, lambda header: header["token_embedding.weight_scale"].update(shape=[1, 49408]))
    assert map_checkpoint(path) is None


def _spoil(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
