"""Compares what our code computes with recorded values, section by section (`scripts/check_goldens.py`)."""
