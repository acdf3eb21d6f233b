"""What "auto" means on which processor."""

from __future__ import annotations

import logging

import pytest
import torch

from clip.errors import ConfigError
from clip.inference.precision import has_bf16_units, resolved


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_auto_is_what_the_processor_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, amx: bool, avx512_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    with caplog.at_level(logging.INFO, "clip"):
        assert resolved("auto") == expected
    assert ("neither AMX nor AVX-512-BF16" in caplog.text) == (expected == "fp32")
    assert [resolved(asked) for asked in ("fp32", "bf16", "int8")] == ["fp32", "bf16", "int8"]  # type: ignore[arg-type]


def test_a_torch_that_cannot_tell_has_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bf16_units()


def test_an_unknown_precision_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'half'; it must be one of"):
        resolved("half")  # type: ignore[arg-type]
