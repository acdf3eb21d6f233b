"""How fast models are on this machine, and what each precision costs in fidelity.

Needs ``inference``, ``features`` and ``fidelity``; matplotlib for plots. Begin with ``measure.py``.
"""
