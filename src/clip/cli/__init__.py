"""The ``clip`` command: ``main.py`` plus one file per verb.

A verb parses, calls the library, prints. Start reading at ``main.py``.
"""
