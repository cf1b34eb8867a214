"""The command line, `hunyuan` or `python -m hunyuan`: one file per command, `main.py` finds them."""
