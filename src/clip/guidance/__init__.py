"""Pictures led by words: an objective on pixels that a gradient can follow, and what is led by it (pixels, shapes,
decoders, denoisers). Needs a model of torch. Start with ``objective``, then ``generators``.
"""
