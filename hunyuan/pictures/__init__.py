"""Picture files: what a stranger's file may be, and how it becomes upright 8-bit sRGB.

Imports neither torch nor anything of the model: the processes that decode uploads load this package alone.
"""
