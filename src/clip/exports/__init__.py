"""A CLIP as graphs that other engines run: OpenVINO or ONNX, in fp32 or int8, with a certificate of what it changed.

Needs ``clip.py``, ``inference``, which runs what is written here, and ``fidelity``; extra ``export``. Start with
``export.export``, then ``graphs`` for the towers and ``certificate`` for the comparison.
"""
