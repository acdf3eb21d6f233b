"""What pictures mostly show and no policy asks for by itself: everything competes with it."""

from __future__ import annotations

__all__ = ["NEUTRAL"]

NEUTRAL = (
    *("a photo", "a picture", "a drawing", "an emoji", "an icon", "text", "a logo", "an abstract pattern"),
    *("a face", "a person", "a group of people", "a child", "a hand", "a heart", "a foot", "an eye"),
    *("a cat", "a dog", "a bird", "a fish", "a horse", "an insect", "a flower", "a tree", "grass", "leaves"),
    *(
        "the sky",
        "the sun",
        "the moon",
        "a star",
        "a cloud",
        "rain",
        "a mountain",
        "the sea",
        "a landscape",
        "a street",
    ),
    *("a house", "a building", "a room", "a door", "a window", "a chair", "a table", "a bed", "a lamp"),
    *("a car", "a bus", "a train", "a bicycle", "an airplane", "a boat", "a road sign", "a flag", "a map"),
    *("a fruit", "a vegetable", "bread", "a cake", "a plate of food", "a cup of coffee", "a spoon", "a bowl"),
    *("a shirt", "a dress", "a shoe", "a hat", "a bag", "glasses", "a watch", "a ring", "an umbrella"),
    *("a telephone", "a computer", "a television", "a camera", "a book", "a pencil", "a letter", "money", "a key"),
    *("a tool", "a machine", "a box", "a ball", "a toy", "a musical instrument", "a clock", "a chart", "an arrow"),
)
"""Prompts."""
