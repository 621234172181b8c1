"""Whether an nginx.conf and its certificate fit this gateway: who closes first, who waits longest, what passes.

Judged is what is in force in each place that passes requests on, so that it does not matter where it is written.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from meterhouse.checkup.conf import ConfError, Directive, Place, bytes_of, find_places, read_conf, seconds_of
from meterhouse.checkup.finding import Finding, failed, ok, warning
from meterhouse.providers.provider import Timeouts
from meterhouse.settings import Settings
from meterhouse.worker import IDLE_SECONDS

SUBJECT, CERTIFICATE = "nginx", "certificate"
ENDS_SOON = timedelta(days=21)
NGINX_DEFAULTS = {"proxy_read_timeout": "60s", "client_max_body_size": "1m", "keepalive_timeout": "60s"}


def check_edge(conf: Path | None, certificate: Path | None, settings: Settings) -> Iterator[Finding]:
    """Look at both, as far as they are given; the conf names certificates of its own."""
    certificates: dict[Path, tuple[Path | None, set[str]]] = {}
    if conf is None:
        yield warning(SUBJECT, "its nginx.conf was not looked at: give it with --nginx FILE.")
    else:
        try:
            root = read_conf(conf)
            yield from check_conf(root, settings)
            certificates |= find_certificates(root, conf.absolute().parent)
        except ConfError as error:
            yield failed(SUBJECT, f"{error}.")
    if certificate is not None:
        certificates.setdefault(certificate, (None, set()))
    for path, (key, names) in certificates.items():
        yield check_certificate(path, key, names)


def check_conf(root: Directive, settings: Settings) -> Iterator[Finding]:
    """Look at what is in force where requests are passed on; raises ConfError."""
    places = list(find_places(root))
    if not places:
        yield failed(SUBJECT, "it passes no request on: no proxy_pass was found.")
        return
    yield from _check_keepalive(root, places)
    yield from _check_waiting(root, places, settings)
    bodies = [bytes_of(place.value("client_max_body_size", NGINX_DEFAULTS["client_max_body_size"])) for place in places]
    least = min(body for body in bodies if body) if any(bodies) else settings.max_body_bytes
    if least < settings.max_body_bytes:
        yield failed(
            SUBJECT,
            f"client_max_body_size is {least} bytes somewhere, METERHOUSE_MAX_BODY_BYTES {settings.max_body_bytes}: "
            "nginx refuses what the gateway would take.",
        )
    else:
        yield ok(SUBJECT, "bodies that the gateway takes pass.")
    for name, wanted, harm in (
        ("proxy_next_upstream", "off", "a POST may be sent twice, and is paid for twice"),
        ("proxy_buffering", "off", "streams arrive in lumps"),
        ("proxy_http_version", "1.1", "no connection to the gateway is used twice"),
    ):
        found = {place.value(name, "nginx's default") for place in places}
        bad = sorted(found - {wanted})
        if bad:
            yield failed(SUBJECT, f"{name} is {', '.join(bad)} somewhere: {harm}.")
        else:
            yield ok(SUBJECT, f"{name} {wanted}.")
    yield _check_forwarded(places)


def _check_keepalive(root: Directive, places: Iterable[Place]) -> Iterator[Finding]:
    used = {place.passes_to.partition("://")[2].partition("/")[0] for place in places}
    for upstream in root.find("upstream"):
        if upstream.words[:1] and upstream.words[0] not in used:
            continue
        own = {inner.name: inner.words for inner in upstream.block}
        if "keepalive" not in own:
            yield warning(SUBJECT, f"upstream {upstream.words[0]} has no keepalive: each request connects anew.")
            continue
        seconds = seconds_of(own.get("keepalive_timeout", [NGINX_DEFAULTS["keepalive_timeout"]])[0])
        if seconds >= IDLE_SECONDS:
            yield failed(
                SUBJECT,
                f"keepalive_timeout of upstream {upstream.words[0]} is {seconds:g} s: below {IDLE_SECONDS:g} s nginx "
                "closes idle connections before the gateway does; now requests can meet a closed one.",
            )
        else:
            yield ok(SUBJECT, f"idle connections are closed by nginx first ({seconds:g} s < {IDLE_SECONDS:g} s).")


def _check_waiting(root: Directive, places: Iterable[Place], settings: Settings) -> Iterator[Finding]:
    longest = settings.total_timeout_seconds or Timeouts().total_seconds
    least = min(seconds_of(place.value("proxy_read_timeout", NGINX_DEFAULTS["proxy_read_timeout"])) for place in places)
    if least <= longest:
        yield failed(
            SUBJECT, f"proxy_read_timeout is {least:g} s somewhere, but an answer may take {longest:g} s: raise it."
        )
    else:
        yield ok(SUBJECT, f"answers are waited for ({least:g} s > {longest:g} s).")
    for directive in root.block:
        if directive.name == "worker_shutdown_timeout" and seconds_of(directive.words[0]) <= longest:
            yield failed(
                SUBJECT,
                f"worker_shutdown_timeout is {directive.words[0]}: a reload cuts answers that take {longest:g} s.",
            )


def _check_forwarded(places: Iterable[Place]) -> Finding:
    for place in places:
        headers = {words[0].lower(): words[1:] for words in reversed(place.in_force.get("proxy_set_header", []))}
        if headers.get("x-forwarded-for") != ["$remote_addr"]:
            return failed(
                SUBJECT,
                "X-Forwarded-For is not overwritten with $remote_addr everywhere: a client could choose its address.",
            )
    return ok(SUBJECT, "X-Forwarded-For is overwritten.")


# --- the certificate


def find_certificates(root: Directive, folder: Path) -> dict[Path, tuple[Path | None, set[str]]]:
    """Find each server's certificate, with its key and the names that it must be good for."""
    found: dict[Path, tuple[Path | None, set[str]]] = {}
    for server in root.find("server"):
        own = {inner.name: inner.words for inner in server.block}
        if "ssl_certificate" in own:
            key = own.get("ssl_certificate_key")
            path = folder / own["ssl_certificate"][0]
            names = found.get(path, (None, set[str]()))[1] | set(own.get("server_name", []))
            found[path] = (None if key is None else folder / key[0], names)
    return found


def check_certificate(path: Path, key: Path | None, names: Iterable[str]) -> Finding:
    """Look whether a certificate can be read, is good now and for a while, fits its key and holds every name."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        has_key = key is None or _fits(certificate, key)
    except (OSError, ValueError, TypeError) as error:
        return failed(CERTIFICATE, f"{path} or its key cannot be read: {error}.")
    now, end = datetime.now(UTC), certificate.not_valid_after_utc
    missing = sorted(name for name in names if not _holds(certificate, name))
    if not certificate.not_valid_before_utc <= now < end:
        return failed(CERTIFICATE, f"{path} is good from {certificate.not_valid_before_utc:%F} to {end:%F}: renew it.")
    if not has_key:
        return failed(CERTIFICATE, f"{key} is not the key of {path}.")
    if missing:
        return failed(CERTIFICATE, f"{path} is not good for {', '.join(missing)}, which nginx serves.")
    if end - now < ENDS_SOON:
        return warning(CERTIFICATE, f"{path} ends on {end:%F}: renew it.")
    return ok(CERTIFICATE, f"{path} is good until {end:%F}.")


def _fits(certificate: x509.Certificate, key: Path) -> bool:
    private = load_pem_private_key(key.read_bytes(), None)
    public = [
        half.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for half in (private.public_key(), certificate.public_key())
    ]
    return public[0] == public[1]


def _holds(certificate: x509.Certificate, name: str) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    held = {held.lower() for held in names.get_values_for_type(x509.DNSName)}
    held |= {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    wanted = name.lower()
    return wanted in held or f"*.{wanted.partition('.')[2]}" in held
