"""What a picture must be named, as an objective: this, and not one of the many other things that there are.

A distance to words has a common part that no picture changes, and a gradient spends itself on it. The question that is
put at the end, "which of these names fits best?", has none: its cross-entropy is the objective here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.errors import ConfigError
from clip.features import AnyImage, encode_images, encode_texts
from clip.guidance.cutouts import Cutouts
from clip.guidance.objective import Objective
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.prompts import checked_templates, fill, same_text

__all__ = ["CUTOUTS", "TEMPLATES", "Recognition", "rivals"]

TEMPLATES = ("{}", "an emoji of a(n) {}")

CUTOUTS = Cutouts(count=4, uncut=1, size=(0.9, 1.2), beyond=0.1, rotate=10, colour=0.15, noise=0.04)
"""Gentle: a drawing is judged as a whole. On white: for a background that changes, it would paint one of its own."""

Tower = Callable[[Tensor], Tensor]
"""Pictures (B, 3, S, S) in [0, 1] → embeddings (B, E), unit norm."""


def rivals() -> tuple[str, ...]:
    """Some three hundred names of things that can be drawn."""
    text = Path(__file__).with_name("rivals.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


class Recognition:
    """Cross-entropy of the name of a picture among rivals, in nats, averaged over cut-outs; lower is better.

    model, preprocess: as ``clip.load`` gives them.
    prompts: what the picture shows; the mean of their embeddings is the goal.
    names: what it could show instead. Those that share a word with a prompt are no rivals of it.
    against: texts that are rivals whatever words they share.
    images: pictures that it resembles; the mean of their embeddings weighs as much as the prompts.
    tower: another image tower of the same space, and ``share`` its part in the result.
    model_cutouts: how many of the cut-outs the model looks at; the tower looks at all.
    """

    def __init__(
        self,
        model: CLIP,
        preprocess: Preprocess,
        *,
        prompts: Sequence[str],
        names: Sequence[str] = (),
        against: Sequence[str] = (),
        images: Sequence[AnyImage] = (),
        templates: Sequence[str] = TEMPLATES,
        cutouts: Cutouts = CUTOUTS,
        tower: Tower | None = None,
        share: float = 0.9,
        model_cutouts: int = 1,
        scale: float = 10.0,
    ) -> None:
        if isinstance(prompts, str) or not prompts or not all(prompt.strip() for prompt in prompts):
            raise ConfigError(f"prompts are {prompts!r}; give a list of texts that are not empty")
        if not 0 <= share <= 1:
            raise ConfigError(f"share is {share}; it must be from 0 to 1")
        if model_cutouts < 1:
            raise ConfigError(f"model_cutouts is {model_cutouts}; it must be at least 1")
        # The look of the model at cut-outs is that of an Objective, which also checks model and preprocess.
        self._look = Objective(model, preprocess, prompts=list(prompts), cutouts=cutouts)
        self.cutouts, self.scale, self.model_cutouts = cutouts, scale, model_cutouts
        self.tower, self.share = tower, share if tower is not None else 0.0
        words = {word for prompt in prompts for word in same_text(prompt).split()} - _SMALL_WORDS - _COLOURS
        self.rivals = (*(name for name in names if not words & set(same_text(name).split())), *against)
        if not self.rivals:
            raise ConfigError("there is nothing that the picture could be taken for; give names or against")
        templates = checked_templates(templates)
        self.name = " and ".join(prompts)
        goal = F.normalize(self._embeddings(prompts, templates).mean(dim=0, keepdim=True), dim=-1)
        if images:
            encoded = [batch.embeddings for batch in encode_images(self._look.model, preprocess, images, workers=1)]
            seen = torch.from_numpy(np.concatenate(encoded)).to(goal).mean(dim=0, keepdim=True)
            goal = F.normalize(goal + F.normalize(seen, dim=-1), dim=-1)
        self.targets = torch.cat([goal, self._embeddings(self.rivals, templates)])  # (1 + R, E)

    @torch.no_grad()
    def named(self, image: Tensor, *, top: int = 3) -> list[tuple[str, float]]:
        """What the model names a picture (3, H, W) in [0, 1], the best first: names and their probabilities."""
        views = Cutouts.none().draw(self._look.preprocess, image.shape[2], image.shape[1])
        embedding = self._look.embeddings(views(self._look.checked(image[None])).flatten(0, 1))
        probabilities = (self._look.model.logit_scale.exp().float() * embedding @ self.targets.T)[0].softmax(dim=0)
        values, places = probabilities.sort(descending=True, stable=True)
        names = (self.name, *self.rivals)
        return [
            (names[place], value) for value, place in zip(values[:top].tolist(), places[:top].tolist(), strict=True)
        ]

    def _embeddings(self, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(T, E), unit norm, each the mean over the templates."""
        filled = [fill(template, _bare(text)) for template in templates for text in texts]
        rows = torch.cat([torch.from_numpy(batch.embeddings) for batch in encode_texts(self._look.model, filled)])
        return F.normalize(rows.view(len(templates), len(texts), -1).mean(dim=0), dim=-1).to(self._look.device)

    def __call__(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(B,), differentiable. images: (B, 3, H, W) in [0, 1], or (B, 4, H, W) with alpha."""
        images = self._look.checked(images)
        batch, _, height, width = images.shape
        views = self.cutouts.draw(self._look.preprocess, width, height, generator)
        pixels = views(images)  # (N, B, 3, S, S)
        values = images.new_zeros(batch)
        if self.share < 1:
            some = pixels[: self.model_cutouts].flatten(0, 1)
            values = values + (1 - self.share) * self._surprise(self._look.embeddings(some), batch)
        if self.tower is not None and self.share:
            values = values + self.share * self._surprise(self.tower(pixels.flatten(0, 1)), batch)
        return values

    def value_and_gradient(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The values (B,), and the gradient of their sum, shaped like the pictures."""
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            values = self(leaf, generator=generator)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient

    def _surprise(self, embeddings: Tensor, batch: int) -> Tensor:
        """(N·B, E) → (B,)"""
        logits = self.scale * embeddings @ self.targets.to(embeddings).T
        goal = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, goal, reduction="none").view(-1, batch).mean(dim=0)


_ARTICLES = frozenset({"a", "an", "the"})
_SMALL_WORDS = _ARTICLES | {"of", "with", "and", "in", "on", "face"}
_COLOURS = frozenset({"red", "green", "blue", "yellow", "orange", "pink", "purple", "black", "white", "brown", "grey"})


def _bare(text: str) -> str:
    """Without its article, for a template that brings its own."""
    first, _, rest = text.strip().partition(" ")
    return rest if rest and first.lower() in _ARTICLES else text.strip()
