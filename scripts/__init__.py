"""Scripts of the repository; none is installed. `benchmarks/` measures, `checks/` is what CI runs, `image/` replays the
image's build, `goldens/` compares with recorded values, `support/` is what several of them use. Each folder's
`__init__.py` says what is in it.
"""
