"""The image's build replayed without Docker: `replay_image.py` its Python part and an edit in it (`replay_edit.py` runs
inside), `replay_apt.py` its system part.
"""
