"""What was found in a picture, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from clip.moderation.policy import Action, Severity

__all__ = ["Finding", "Verdict"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One picture and one category."""

    category: str
    score: float
    """0 to 1: the probability that the picture belongs to the category, where one of twenty does (``calibration``), or
    as often as among the labelled pictures if it was fitted."""
    threshold: float
    prompt: str
    """The words, or the path of the example, that fit best."""
    view: str
    """What of the picture gave the score: ``whole``, ``tile 2,1 of 3x3``, ``frame 7: whole``, ``without text`` …"""
    action: Action
    """What the category asks for if the picture belongs to it; milder by an exemption; ``allow`` if it does not."""
    severity: Severity
    exemption: str | None = None
    """What made the action milder."""
    threshold_origin: str = "stated"
    """Where the threshold comes from: ``stated`` in the policy, chosen ``by calibration`` for the policy's target, or
    ``fitted on N pictures``."""
    reservation: str | None = None
    """Why the action is no stricter than ``flag``: once the writing in the picture is painted over, the score falls
    below the threshold."""

    @property
    def margin(self) -> float:
        """By how much the score is above its threshold; negative below it."""
        return self.score - self.threshold

    @property
    def is_hit(self) -> bool:
        return self.score >= self.threshold


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One picture and a policy."""

    path: str
    """As it was given."""
    action: Action
    """The strictest of all findings, or what the policy says of files that cannot be read."""
    findings: tuple[Finding, ...]
    """One for each category: hits first, by action, severity and margin; then the others by margin. Empty where the
    file could not be read."""
    policy: str
    """Fingerprint of the policy; then, if something was fitted for it, ``+`` and the fingerprint of that."""
    model: str
    """Fingerprint of the model."""
    sha256: str | None = None
    """Of the file's bytes, also if they are no picture; None if they could not be read: no file, one that is closed to
    us, or a stream that fails or is longer than ``clip.images.MAX_BYTES``."""
    frames: int = 1
    """That the file has, pages too, as far as could be told; how many of them were looked at is in the notes."""
    notes: tuple[str, ...] = ()
    """What a reviewer should know: writing over the picture, hidden pixels, frames that were passed over."""
    error: str | None = None
    """Why the file could not be read."""

    @property
    def rule(self) -> Finding | None:
        """The finding that decides; None if no category is hit."""
        return self.findings[0] if self.findings and self.findings[0].is_hit else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``clip moderate --json``; keys are only ever added to."""
        rule = self.rule
        return {
            "path": self.path,
            "action": self.action,
            "category": rule.category if rule else None,
            "findings": [
                {**dataclasses.asdict(finding), "margin": finding.margin, "is_hit": finding.is_hit}
                for finding in self.findings
            ],
            "frames": self.frames,
            "notes": list(self.notes),
            "error": self.error,
            "sha256": self.sha256,
            "policy": self.policy,
            "model": self.model,
        }
