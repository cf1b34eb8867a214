"""What measures speed, memory and errors. On a GPU: `bench_engine.py` (a whole edit by stage; `engine_work.py` counts
its arithmetic, `words_engine.py` its words, `engine_check.py` its errors), `bench_growth.py` (how its cost grows
with what is asked for; `growth_units.py`), `profile_stages.py` (kernels and gaps by stage), `bench_texts.py` (texts
decoded together), `bench_moe.py`, `bench_kernels.py`, `bench_vae.py` (the parts), `bench_token.py` (other ways to
compute a token; `token_cases.py`), `bench_load.py` (reading weights). Over HTTP: `benchmark_http.py` (latency),
`load_test.py` (twice the capacity), `service_overhead.py` (what the service adds to the engine). On a CPU:
`measure_mxfp4.py` (errors of a 4-bit matrix).
"""
