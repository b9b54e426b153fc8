"""Token shards and the batches made of them: numpy only, no torch.

indexed.py, manifest.py     files: Megatron's pairs, and what a folder of them holds
foreign.py                  nanoGPT's and llm.c's files, read in place and converted
shards.py, verify.py        opening a split, with the quick checks; reading a whole folder, with all of them
dataset.py, blend.py        sample i of one split, or of several by weight
problems.py                 sample i of problems: one each, with labels beside its tokens
order.py                    which sample comes k-th: a permutation that is computed, not stored
batches.py                  the samples of one rank in one step, from `consumed_samples` alone
"""
