"""``python -m envs.droid.console --demo``: the console with a robot that is not there."""

import argparse
import secrets
import sys
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from envs.droid.console.demo import DemoHost
from envs.droid.console.prompts import STANDARD, Prompts
from envs.droid.console.server import Console, ConsoleSettings, serving
from envs.droid.desk import Desk


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m envs.droid.console", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="moving test pictures, fake episodes")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: a phone may join")
    parser.add_argument("--port", type=int, default=8081, help="0 takes a free one")
    parser.add_argument("--token", default=secrets.token_urlsafe(24), help="default: a new one")
    parser.add_argument("--prompts", type=Path, default=STANDARD, help="a table of your own")
    parser.add_argument("--journal", type=Path, help="where labels are kept; default: nowhere")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a fake episode")
    return parser.parse_args()


def main() -> None:
    wanted = _arguments()
    if not wanted.demo:
        sys.exit(
            "the console runs inside the robot's host: python -m envs.droid.host ... "
            "--console-port 8081. To try it without a robot: add --demo"
        )
    with TemporaryDirectory() as folder:
        try:
            prompts = Prompts(wanted.prompts)
            settings = ConsoleSettings(wanted.host, wanted.port, wanted.token)
            desk = Desk(wanted.journal or Path(folder) / "desk.jsonl", prompts)
        except ValueError as error:
            sys.exit(str(error))
        host = DemoHost(desk, prompts.tasks, max_ticks=max(1, int(15 * wanted.seconds)))
        loop = threading.Thread(target=host.run, daemon=True)
        loop.start()
        try:
            with serving(Console(desk, host.rig(), settings), settings) as address:
                print(f"open {address}", flush=True)  # noqa: T201 - what the command is for
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
        except ValueError as error:
            sys.exit(str(error))
        finally:
            host.close()
            loop.join(5)
            desk.close()


if __name__ == "__main__":
    main()
