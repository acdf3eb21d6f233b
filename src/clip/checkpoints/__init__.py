"""Bytes on disk ↔ (config, state dict, metadata): the only place that knows files and foreign names.

Needs the model's sizes, nothing above it. Start reading at ``files.py``, then ``formats.py`` (one table per format).
"""
