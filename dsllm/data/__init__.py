"""Token shards and the batches made of them: numpy only, no torch.

indexed.py, manifest.py, foreign.py    files: Megatron's pairs, the folder's manifest, other projects' formats
dataset.py, blend.py                   sample i of one folder's split, or of several by weight
order.py                               which sample comes k-th: a permutation that is computed, not stored
batches.py                             the samples of one rank in one step, from `consumed_samples` alone
"""
