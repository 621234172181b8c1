"""How a part is started, and how the first keys are made once the database is there.

Not here: in which order (``infra/up``, the benchmark), what the parts are (``parts``), and the folder (``place``).
"""

import sys

from dotenv import dotenv_values

from stack import process
from stack.parts import Part, environment, is_postgres_there, meterhouse, run
from stack.parts import check_ports as check_free_ports
from stack.place import Place, write_closed
from stack.process import StackError

START_SECONDS = 60
RETRIES = 3
"""PostgreSQL refuses to start while what a killed one left behind still ends."""


def start_part(place: Place, part: Part) -> None:
    """Start a part and wait until it can be used.

    Raises:
        StackError: It did not start, or its port is taken.
    """
    old = place.started.get(part.name)
    if old is not None:
        process.kill(old)
    check_free_ports(place, part)
    is_ready = is_postgres_there if part.name == "postgres" else part.is_well
    log = place.log(part.name)
    for tries_left in reversed(range(RETRIES)):
        print(f"Starting {part.name} ...", file=sys.stderr)
        started = place.started[part.name] = part.start(place)
        place.save()
        try:
            process.await_ready(started, lambda: is_ready(place), part.name, log, START_SECONDS)
        except StackError:
            process.kill(started)
            if not tries_left or part.name != "postgres":
                raise
        else:
            return


def make_keys(place: Place) -> None:
    """Bring the schema up to date, and make the first keys if there are none."""
    urls = f"METERHOUSE_DATABASE_URL={place.database_url}\nMETERHOUSE_MIGRATION_DATABASE_URL={place.owner_url}\n"
    pepper = f"METERHOUSE_KEY_PEPPER=1:{place.secrets['pepper']}\nMETERHOUSE_REDIS_URL={place.redis_url}\n"
    settings = place.folder / "migrate.env"
    write_closed(settings, urls + pepper)
    words = ["--env-file", str(settings)]
    run([*meterhouse(), "migrate", *words], environment=environment())
    if "admin_key" not in place.secrets:
        words += ["--data", str(place.folder / "gateway")]
        keys = place.folder / "first.env"
        keys.unlink(missing_ok=True)
        try:
            run([*meterhouse(), "bootstrap", *words, "--env-file-out", str(keys)], environment=environment())
            found = dotenv_values(keys, interpolate=False)
            made = (found["OPENAI_API_KEY"], found["OPENAI_ADMIN_KEY"])
        except StackError as error:
            if "organization already" not in str(error):
                raise
            # A start that was interrupted had made the first ones, and nobody knows them.
            made = (_issue("create", words), _issue("create-admin", words))
        place.secrets |= {"key": str(made[0]), "admin_key": str(made[1])}
        place.save()
        keys.unlink(missing_ok=True)
    write_closed(
        place.folder / "keys.env",
        f"OPENAI_BASE_URL={place.base_url}/v1\nOPENAI_API_KEY={place.secrets['key']}\n"
        f"OPENAI_ADMIN_KEY={place.secrets['admin_key']}\nSSL_CERT_FILE={place.folder / 'tls' / 'ca.pem'}\n",
    )


def _issue(command: str, words: list[str]) -> str:
    text = run([*meterhouse(), "keys", command, "--name", "infra/up", *words], environment=environment())
    return next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("key:"))


def is_running(place: Place, part: Part) -> bool:
    """Whether a part was started and has not ended."""
    started = place.started.get(part.name)
    return started is not None and started.is_running
