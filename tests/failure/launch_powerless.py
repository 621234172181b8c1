"""``meterhouse dev`` whose journal lives in memory until it is synced: to kill it is to cut its power."""

import argparse
from pathlib import Path

import uvloop

from fakes.files import FaultyFiles
from meterhouse.dev import run_dev
from meterhouse.settings import Environment


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env-file", type=Path, required=True)
    arguments = parser.parse_args()
    environment = Environment.read(arguments.env_file)
    settings = environment.settings(data=arguments.data)
    files = FaultyFiles(loses_power=True)
    uvloop.run(run_dev(settings, environment, "127.0.0.1", arguments.port, files=files))


if __name__ == "__main__":
    main()
