"""`hunyuan serve`: the HTTP service, from any folder.

Knows where the service's file lies, in a checkout and in an installed package, and hands over to `bentoml serve`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from hunyuan.errors import HunyuanError, SettingsError

DESCRIPTION = """\
Starts the HTTP service. Everything is set by environment variables (docs/settings.md); without MODEL_ID it serves
the built-in demo. What comes after -- goes to `bentoml serve` as it is."""
EXAMPLES = """\
  hunyuan serve
  hunyuan serve --model /models/HunyuanImage-3-Instruct --host 0.0.0.0 --port 9000
  HUNYUAN_QUEUE_SIZE=2 hunyuan serve -- --ssl-certfile cert.pem --ssl-keyfile key.pem"""

INSTALLED = "hunyuan._service"  # where the wheel has service.py (pyproject.toml)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on; default: BentoML's")
    parser.add_argument("--port", type=_port, metavar="N", help="port to listen on; default: 8000")
    parser.add_argument("--model", metavar="FOLDER", help="checkpoint folder, demo or tiny; default: MODEL_ID, or demo")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="for `bentoml serve`")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from hunyuan.settings import Settings

    if args.model is not None:
        os.environ["MODEL_ID"] = args.model
    Settings()  # what is wrong with them is said in one line, before a server starts
    if importlib.util.find_spec("bentoml") is None:
        raise SettingsError("BentoML is not installed: pip install . in the project's folder")
    sys.stdout.flush()
    command = bentoml_command(args.host, args.port, args.options)
    os.execv(command[0], command)


def bentoml_command(host: str | None, port: int | None, options: list[str]) -> list[str]:
    """The whole command; BentoML's process takes this one's place, and with it its signals."""
    command = [sys.executable, "-m", "bentoml", "serve", *service()]
    if host is not None:
        command += ["--host", host]
    if port is not None:
        command += ["--port", str(port)]
    return command + options


def service() -> list[str]:
    """What `bentoml serve` is told of the service's place. Raises `HunyuanError` where its file is missing."""
    if importlib.util.find_spec(INSTALLED) is not None:
        return [f"{INSTALLED}:HunyuanImage"]
    root = Path(__file__).resolve().parents[2]
    if not (root / "service.py").is_file():
        raise HunyuanError(f"there is neither {INSTALLED} nor {root / 'service.py'}: the package is incomplete")
    return ["service:HunyuanImage", "--working-dir", str(root)]
