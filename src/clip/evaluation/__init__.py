"""Zero-shot classification: prompts for any categories, compared with images in the joint space.

Needs ``features`` and a loaded model. Start reading at ``zero_shot.py``.
"""
