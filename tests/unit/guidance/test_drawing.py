"""The loop: towards a known picture, from where it was stopped, and back from what is not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip.errors import CheckpointError, ConfigError
from clip.guidance.drawing import Drawing, DrawingDivergedError, Step, draw
from clip.guidance.generators import Pixels
from clip.guidance.sketch import simplified
from clip.guidance.vector import Shapes


class Towards:
    """Squared distance to a picture, and noise, that a loop which loses its random numbers would show."""

    def __init__(self, goal: Tensor, noise: float = 0.02, not_finite_at: frozenset[int] = frozenset()) -> None:
        self.goal, self.noise, self.not_finite_at, self.calls = goal, noise, not_finite_at, 0

    def __call__(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.value_and_gradient(images, generator=generator)[0]

    def value_and_gradient(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        self.calls += 1
        goal = self.goal + self.noise * torch.randn(self.goal.shape, generator=generator)
        difference = images.detach() - goal
        values = difference.square().mean(dim=(1, 2, 3)) * 100
        if self.calls in self.not_finite_at:
            values = values * float("nan")
        return values, difference * 2 * 100 / goal.numel()


def _goal() -> Tensor:
    angles = torch.arange(8) * (2 * torch.pi / 8)
    points = 0.5 + 0.25 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    with torch.no_grad():
        image: Tensor = Shapes(points[None, None], torch.tensor([[[1.0, 0.1, 0.1]]]), size=32)()
    return image


def _shapes(batch: int = 4) -> Shapes:
    return Shapes.random(2, points=6, batch=batch, mirrored=2, size=32, generator=torch.Generator().manual_seed(3))


def _draw(shapes: Shapes, steps: int = 60, target: Towards | None = None, **options: object) -> Drawing:
    return draw(shapes, target or Towards(_goal()), steps=steps, keep=((0.3, 2),), **options)  # type: ignore[arg-type]


def test_it_draws_a_known_picture() -> None:
    shapes = _shapes()
    seen: list[Step] = []
    with torch.no_grad():
        before = float((shapes() - _goal()).square().mean(dim=(1, 2, 3)).min())
    drawing = _draw(shapes, 200, frames=5, frame_size=48, on_step=seen.append)
    with torch.no_grad():
        after = float((shapes() - _goal()).square().mean())
    assert after < before / 4
    assert (drawing.steps, drawing.stopped, len(seen)) == (200, "done", 200)
    assert seen[-1].number == 200
    assert len(seen[0].values) == 4
    assert len(seen[-1].values) == 2
    assert shapes.points.shape[0] == 1  # the best alone is left
    assert [frame.shape for frame in drawing.frames] == [(48, 48, 3)] * 5


def test_the_same_seed_draws_the_same() -> None:
    pictures = [_shapes() for _ in range(3)]
    for picture, seed in zip(pictures, (1, 1, 2), strict=True):
        _draw(picture, 20, seed=seed)
    assert torch.equal(pictures[0].points, pictures[1].points)
    assert not torch.equal(pictures[0].points, pictures[2].points)


@pytest.mark.parametrize("stop_at", [7, 25, 40])
def test_stopped_and_gone_on_it_ends_with_the_same_bits(stop_at: int, tmp_path: Path) -> None:
    whole, parts, path = _shapes(), _shapes(), tmp_path / "state.safetensors"
    expected = _draw(whole, frames=6)

    class KilledError(Exception):
        pass

    def kill(step: Step) -> None:
        if step.number == stop_at:
            raise KilledError

    with pytest.raises(KilledError):
        _draw(parts, frames=6, checkpoint=path, checkpoint_every=5, on_step=kill)
    again = _shapes()
    found = _draw(again, frames=6, checkpoint=path, checkpoint_every=5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert found.value == expected.value
    assert all((a == b).all() for a, b in zip(found.frames, expected.frames, strict=True))
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    _draw(_shapes(), 10, checkpoint=path)
    with pytest.raises(CheckpointError, match="other settings"):
        _draw(_shapes(), 11, checkpoint=path)
    other = _shapes()
    with torch.no_grad():
        other.points.add_(0.01)
    with pytest.raises(CheckpointError, match="other settings"):
        _draw(other, 10, checkpoint=path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="remove it"):
        _draw(_shapes(), 10, checkpoint=path)


def test_time_and_ctrl_c_end_it_with_what_there_is() -> None:
    shapes = _shapes()
    drawing = _draw(shapes, 1000, seconds=1e-9, frames=3)
    assert (drawing.stopped, drawing.steps, len(drawing.frames)) == ("time", 1, 1)

    def interrupt(step: Step) -> None:
        if step.number == 5:
            raise KeyboardInterrupt

    drawing = _draw(_shapes(), 1000, on_step=interrupt)
    assert (drawing.stopped, drawing.steps) == ("interrupted", 5)


def test_it_comes_back_from_what_is_not_finite() -> None:
    shapes = _shapes()
    drawing = _draw(shapes, 40, Towards(_goal(), not_finite_at=frozenset({15, 28})))
    assert drawing.steps == 40
    assert all(value.isfinite().all() for value in shapes.parameters())
    with pytest.raises(DrawingDivergedError, match="smaller"):
        _draw(_shapes(), 40, Towards(_goal(), not_finite_at=frozenset(range(15, 40))))


def test_pixels_are_drawn_by_the_same_loop() -> None:
    pixels = Pixels.noise(32, 32, batch=2, generator=torch.Generator().manual_seed(0))
    draw(pixels, Towards(_goal()), steps=150, learning_rate=0.1, keep=((0.5, 1),))
    with torch.no_grad():
        assert (pixels() - _goal()).square().mean() < 0.01


def test_a_shape_that_does_nothing_is_taken_away() -> None:
    angles = torch.arange(8) * (2 * torch.pi / 8)
    circle = 0.5 + 0.25 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    hidden = 0.5 + 0.1 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    colours = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.1, 0.1]]])
    shapes = Shapes(torch.stack([hidden, circle])[None], colours, size=32)  # the lower one is not seen
    kept = simplified(shapes, Towards(_goal(), noise=0), worth=0.01)
    assert torch.equal(kept.points[0], shapes.points[0, 1:])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"frames": 65}, "frames"),
        ({"keep": ((1.5, 1),)}, "keep"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        draw(_shapes(), Towards(_goal()), **options)  # type: ignore[arg-type]
