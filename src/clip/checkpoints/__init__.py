"""Bytes on disk ↔ (config, state dict, metadata): the only place that knows files and foreign names.

Needs the model's config, nothing above it. Start reading at ``formats.py`` (one key table per format), then ``files.py``.
"""
