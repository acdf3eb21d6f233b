"""Pictures held against a policy in words: verdicts with their reasons, a record that shows if it is changed, and what
to do when it is wrong. Needs a model, and no labels; with labels it is better (``fitting``). Start with ``policy``,
then ``moderator``.
"""
