"""How FlashInfer's kernels are compiled: which ones, which tiles of them, how its sources are cut."""
