"""Where the command `dino` and `python -m dino_cli`, which `torchrun -m` needs, begin."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the process's own command line, and report an interrupt at any moment in one line."""
    # SIGTERM (timeout, docker stop, schedulers) ends every command as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from dino_cli.app import main as run_command_line  # takes a moment, as does every import

        run_command_line()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
