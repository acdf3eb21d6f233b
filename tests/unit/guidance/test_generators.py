"""Generators give back what they began with, keep to [0, 1], and can be moved by a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clip.errors import ConfigError, ImageError, ShapeError
from clip.guidance.generators import Decoder, Fourier, Generator, Pixels
from clip.guidance.ranges import from_symmetric, out_of_range, straight_through_clamp


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("make", [Pixels, Fourier])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 5), (6, 13)])
def test_the_start_comes_back(make: type[Pixels] | type[Fourier], size: tuple[int, int]) -> None:
    start = 0.01 + 0.98 * torch.rand(2, 3, *size)
    torch.testing.assert_close(make(start)(), start, atol=1e-5, rtol=0)
    torch.testing.assert_close(make(start[0])(), start[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [Pixels, Fourier])
def test_black_and_white_can_still_move(make: type[Pixels] | type[Fourier]) -> None:
    generator = make(torch.ones(1, 3, 8, 8))
    assert generator().min() > 0.997
    generator().sum().backward()
    (parameter,) = generator.parameters()
    assert parameter.grad is not None
    assert parameter.grad.abs().max() > 1e-4


@pytest.mark.parametrize("make", [Pixels, Fourier])
def test_any_target_can_be_reached(make: type[Pixels] | type[Fourier]) -> None:
    target = 0.2 + 0.6 * torch.rand(1, 3, 8, 8)
    generator = make.noise(8, 8, generator=seeded())
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (generator() - target).square().sum().backward()
        optimizer.step()
    assert (generator() - target).abs().max() < 0.05


@pytest.mark.parametrize("make", [Pixels, Fourier])
def test_noise_is_grey_seeded_and_resumed_from_its_state(make: type[Pixels] | type[Fourier]) -> None:
    generator = make.noise(20, 12, batch=2, generator=seeded())
    picture = generator()
    assert picture.shape == (2, 3, 12, 20)
    assert picture.dtype == torch.float32
    assert 0.25 < picture.min() < picture.max() < 0.75
    assert picture.std() > 0.001
    torch.testing.assert_close(make.noise(20, 12, batch=2, generator=seeded())(), picture, rtol=0, atol=0)
    other = make.noise(20, 12, batch=2)
    other.load_state_dict(generator.state_dict())
    torch.testing.assert_close(other(), picture, rtol=0, atol=0)


@pytest.mark.parametrize("size", [16, 64, 65])
def test_a_parameter_moves_pixels_by_as_much_at_every_size(size: int) -> None:
    noise = Fourier.noise(size, size, batch=8, level=0.1, generator=seeded())
    logits = torch.logit(noise())
    grey = logits.mean(dim=1)
    assert 0.02 < grey.std() < 0.2  # of the size of the level


def test_waves_fall_with_their_frequency() -> None:
    """A random spectrum is smooth: neighbouring pixels are far more alike than in white noise."""

    def roughness(decay: float) -> float:
        picture = Fourier.noise(64, 64, decay=decay, generator=seeded())()
        return (picture.diff(dim=-1).std() / picture.std()).item()

    assert roughness(2) < roughness(1) < 0.8 < roughness(0) == pytest.approx(2**0.5, rel=0.1)


def test_a_decoder_moves_the_latent_and_leaves_the_module() -> None:
    module = nn.Sequential(nn.Linear(4, 3 * 8 * 8), nn.Tanh(), nn.Unflatten(1, (3, 8, 8))).train()
    generator = Decoder(module, torch.zeros(2, 4), to_unit_range=from_symmetric)
    assert [name for name, _ in generator.named_parameters()] == ["latent"]
    assert list(generator.state_dict()) == ["latent"]
    picture = generator()
    torch.testing.assert_close(picture, (module(torch.zeros(2, 4)) + 1) / 2)
    picture.sum().backward()
    assert generator.latent.grad is not None
    assert generator.latent.grad.abs().min() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert module.training


def test_a_decoder_that_overshoots_is_clamped_and_still_moves() -> None:
    generator = Decoder(nn.Identity(), torch.full((1, 3, 2, 2), 7.0))
    assert generator().max() == 1
    generator().sum().backward()
    torch.testing.assert_close(generator.latent.grad, torch.ones(1, 3, 2, 2))


def test_ranges() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], requires_grad=True)
    torch.testing.assert_close(straight_through_clamp(x), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(from_symmetric(x), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    (gradient,) = torch.autograd.grad(from_symmetric(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full((5,), 0.5))
    images = torch.zeros(2, 3, 2, 2)
    images[1, 0, 0, 0] = 3  # two beyond, in one value of twelve
    torch.testing.assert_close(out_of_range(images), torch.tensor([0.0, 4 / 12]))


@pytest.mark.parametrize("make", [Pixels, Fourier])
def test_what_is_refused(make: type[Pixels] | type[Fourier]) -> None:
    with pytest.raises(ShapeError, match="batch, 3, height, width"):
        make(torch.zeros(1, 8, 8))
    with pytest.raises(ImageError, match="not from 0 to 1"):
        make(torch.full((1, 3, 8, 8), 2.0))
    with pytest.raises(ImageError):
        make(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(ConfigError, match="at least one pixel"):
        make.noise(0, 8)


def test_what_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="decay"):
        Fourier(torch.zeros(1, 3, 8, 8), decay=-1)
    with pytest.raises(ShapeError, match="the decoder gave"):
        Decoder(nn.Linear(4, 3), torch.zeros(1, 4))()


def test_the_protocol_has_one_method() -> None:
    class Grey(Generator):
        def forward(self) -> Tensor:
            return torch.full((1, 3, 2, 2), 0.5)

    assert Grey()().mean() == 0.5
    with pytest.raises(TypeError):
        Generator()  # type: ignore[abstract]
