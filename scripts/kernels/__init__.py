"""What `scripts/build_kernels.py` is made of: which kernels, which tiles of them, how FlashInfer's sources are cut."""
