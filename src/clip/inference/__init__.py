"""One model in its fastest form on this machine: what every task runs.

Needs ``model`` and ``checkpoints``; torch only for what torch computes. Start with ``loading.load_for_inference``, then
``optimized.InferenceCLIP`` for CPUs, ``exported.ExportedCLIP`` for the engines that need no torch.
"""
