"""Pairs of images and texts: sources that hold them, an order that every rank agrees on, batches, and a doctor.

Needs ``preprocess``, ``images`` and ``simple_tokenizer``; knows nothing of models. Begin with ``records.py``.
"""
