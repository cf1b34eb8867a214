"""What CI runs beside the tests themselves: `test.sh` is all of it. `image.sh` (what is checked of the image),
`audit.py` (known vulnerabilities), `licences.py` (docs/licences.md and the SBOM), `fuzz_images.py` (broken pictures;
the tests have a short form), `readme_command.py` (a command as the README shows it). `test_gpu.sh` needs a GPU;
`lock.sh` writes requirements.lock.
"""
