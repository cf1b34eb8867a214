"""`python -m hunyuan` is the same as `hunyuan`."""

import sys

from hunyuan.cli.main import main

sys.exit(main())
