"""What a gradient can draw with: parameters → pictures. Vector shapes are in ``vector``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clip.errors import ConfigError, ImageError, ShapeError
from clip.guidance.frozen import frozen_twin
from clip.guidance.ranges import straight_through_clamp

__all__ = ["Decoder", "Fourier", "Generator", "Pixels"]

# Columns: the directions in which the colours of ImageNet vary, each as long as they vary in it (Olah et al. 2017, as
# in their library, Lucid), the longest of length one.
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOURS /= _COLOURS.norm(dim=0).max()

_NEAREST_TO_ENDS = 1 / 512
"""How near to black and white a start may be; beyond, a sigmoid hardly moves."""


class Generator(nn.Module, ABC):
    """Parameters that make pictures. Its parameters are what an optimizer moves; its state dict is what is resumed."""

    @abstractmethod
    def forward(self) -> Tensor:
        """(B, 3, H, W), float32, in [0, 1], differentiable in all parameters."""


class Pixels(Generator):
    """A parameter for each pixel and channel, brought into [0, 1] by a sigmoid. Its pictures tend to grain; ``Fourier``
    is the same space with better directions in it.

    start: (B, 3, H, W) or (3, H, W) in [0, 1]: the pictures to begin with, kept 1/512 away from black and white.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(_logits(start))

    @classmethod
    def noise(
        cls, width: int, height: int, *, batch: int = 1, level: float = 0.05, generator: torch.Generator | None = None
    ) -> Pixels:
        """Grey with normal noise of this ``level`` on it, on the scale 0…1."""
        return cls((0.5 + level * _normal((batch, 3, height, width), generator)).clamp(0, 1))

    def forward(self) -> Tensor:
        return torch.sigmoid(self.logits)


class Fourier(Generator):
    """Pictures as waves, long ones first, in colours that vary independently (Olah et al. 2017, Feature Visualization).

    It holds what ``Pixels`` holds; but one step of an optimizer moves whole areas, and moves them in brightness more
    than in hue, as pictures vary. That is what keeps grain away.

    start: (B, 3, H, W) or (3, H, W) in [0, 1], kept 1/512 away from black and white.
    decay: amplitudes fall with this power of the frequency: 1 as in pictures of nature, more for smoother ones, 0 for
        none. A parameter of size one moves the logits of pixels by about one, whatever the size of the picture.
    """

    amplitudes: Tensor

    def __init__(self, start: Tensor, *, decay: float = 1.0) -> None:
        super().__init__()
        if not 0 <= decay <= 4:
            raise ConfigError(f"decay is {decay}; it must be from 0 to 4")
        logits = _logits(start)
        self.height, self.width = logits.shape[-2:]
        self.register_buffer("amplitudes", _amplitudes(self.height, self.width, decay), persistent=False)
        independent = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_COLOURS), logits)
        spectrum = torch.fft.rfft2(independent, norm="ortho") / self.amplitudes
        self.spectrum = nn.Parameter(torch.view_as_real(spectrum).contiguous())  # (B, 3, H, W / 2 + 1, 2)

    @classmethod
    def noise(
        cls,
        width: int,
        height: int,
        *,
        batch: int = 1,
        level: float = 0.05,
        decay: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Fourier:
        """Grey with waves of random phases on it, parameters of standard deviation ``level``."""
        _check_size(width, height)
        waves = cls(torch.full((batch, 3, height, width), 0.5), decay=decay)
        with torch.no_grad():
            waves.spectrum.copy_(level * _normal(waves.spectrum.shape, generator))
        return waves

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.spectrum) * self.amplitudes
        independent = torch.fft.irfft2(spectrum, s=(self.height, self.width), norm="ortho")
        return torch.sigmoid(torch.einsum("ij,bjhw->bihw", _COLOURS.to(independent), independent))


class Decoder(Generator):
    """What a module makes of a latent: the decoder of a GAN or a VAE. The latent alone is the parameter.

    module: takes the latent and gives (B, 3, H, W). Its weights are shared and not moved by an optimizer; they are in
        no state dict and stay on their device.
    to_unit_range: what the module gives → [0, 1]; ``from_symmetric`` for one that gives [-1, 1].
    """

    def __init__(
        self, module: nn.Module, latent: Tensor, *, to_unit_range: Callable[[Tensor], Tensor] = straight_through_clamp
    ) -> None:
        super().__init__()
        self.latent = nn.Parameter(latent.detach().clone())
        self._module = (frozen_twin(module),)  # in a tuple: its weights are not ours
        self._to_unit_range = to_unit_range

    def forward(self) -> Tensor:
        images: Tensor = self._to_unit_range(self._module[0](self.latent)).float()
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"the decoder gave shape {tuple(images.shape)}; (batch, 3, height, width) is expected")
        return images


def _logits(start: Tensor) -> Tensor:
    """(B, 3, H, W), what a sigmoid turns into the pictures."""
    if start.ndim == 3:
        start = start[None]
    if start.ndim != 4 or start.shape[1] != 3 or 0 in start.shape:
        raise ShapeError(f"the start has shape {tuple(start.shape)}; (batch, 3, height, width) is expected")
    if not (start.min() >= 0 and start.max() <= 1):
        raise ImageError(f"the start holds values from {start.min():.4g} to {start.max():.4g}, not from 0 to 1")
    return torch.logit(start.detach().float(), eps=_NEAREST_TO_ENDS)


def _amplitudes(height: int, width: int, decay: float) -> Tensor:
    """(H, W / 2 + 1): of the waves of a picture, their mean square one; the constant as strong as the longest wave."""
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequencies = torch.sqrt(down.square() + across.square())
    amplitudes = frequencies.clamp(min=1 / max(height, width)) ** -decay
    counts = torch.full((width // 2 + 1,), 2.0)  # the half that is not stored mirrors the one that is
    counts[0] = 1
    if width % 2 == 0:
        counts[-1] = 1
    return amplitudes / torch.sqrt((amplitudes.square() * counts).sum() / (height * width))


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, drawn on the CPU or where the generator is; brought to the CPU."""
    if min(shape) < 1:
        raise ConfigError(f"the shape is {tuple(shape)}; a picture has at least one pixel")
    return torch.randn(shape, generator=generator, device=generator.device if generator else None).cpu()


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ConfigError(f"the size is {width}×{height}; a picture has at least one pixel")
