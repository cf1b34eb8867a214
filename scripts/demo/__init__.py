"""The demo checkpoint: its data, its edits, its training and its judge. Nothing of the service imports from here."""
