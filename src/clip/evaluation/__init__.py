"""Zero-shot classification by any names, and measuring how good a model is: accuracy, retrieval, probes, intervals.

Needs ``features``, ``data`` and a loaded model. Start reading at ``zero_shot.py`` to classify, at ``evaluate.py`` to
measure.
"""
