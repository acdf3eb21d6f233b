"""Training: losses, optimizer and schedule, and one loop for one process and for many, which can stop at any moment.

Needs ``model``, ``checkpoints`` and ``data``; evaluators come in as callables. Begin with ``loop.py``.
"""
