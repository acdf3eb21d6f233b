"""Pictures held against a policy in words: verdicts with their reasons, a record that cannot be changed unseen, and what
to do when it is wrong. Needs a model, and no labels; labels make it better (``fitting``). Start with ``policy`` and
``moderator``.
"""
