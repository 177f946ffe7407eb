"""Receivers of copies of the audit log: syslog servers (RFC 5424 over UDP, TCP and TLS) and webhooks."""

import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from portal.kernel.audit_streams import NotTaken, Receiver
from portal.kernel.outbound import signed_headers, target_of
from portal.settings import Settings

TIMEOUT_S = 10.0
# How long a syslog server may take to close its side after ours: it has read everything then.
FAREWELL_S = 2.0
PORTS = {"udp": 514, "tcp": 601, "tls": 6514}
LARGEST_DATAGRAM = 60_000
AUDIT_FACILITY, INFO, WARNING = 13, 6, 4
APP_NAME, LONGEST_MSGID, HIGHEST_SEQUENCE_ID = "atonix-portal", 32, 2**31 - 1
Entry = Mapping[str, object]


def receivers(settings: Settings) -> list[Receiver]:
    """Those that are configured."""
    found = []
    if settings.audit_syslog_url:
        found.append(Receiver("syslog", lambda entries: send_syslog(settings.audit_syslog_url, entries)))
    if settings.audit_webhook_url:
        secret = settings.audit_webhook_secret.get_secret_value()
        found.append(Receiver("webhook", lambda entries: send_webhook(settings.audit_webhook_url, secret, entries)))
    return found


def syslog_message(entry: Entry) -> bytes:
    """One entry as RFC 5424 has it; the message is the entry as JSON."""
    severity = INFO if entry["status"] == "success" else WARNING
    message_id = "".join(char for char in str(entry["action"]) if "!" <= char <= "~")[:LONGEST_MSGID] or "-"
    number = (int(str(entry["seq"])) - 1) % HIGHEST_SEQUENCE_ID + 1
    at = str(entry["timestamp"]).replace("+00:00", "Z")
    host = "".join(char for char in socket.gethostname() if "!" <= char <= "~")[:255] or "-"
    head = f'<{AUDIT_FACILITY * 8 + severity}>1 {at} {host} {APP_NAME} - {message_id} [meta sequenceId="{number}"] '
    return (head + json.dumps(entry, ensure_ascii=False, separators=(",", ":"))).encode("utf-8", "replace")


def send_syslog(url: str, entries: Sequence[Entry]) -> None:
    """Send a batch on a connection of its own. Raises NotTaken."""
    parts = urlsplit(url)
    place = (parts.hostname or "", parts.port or PORTS[parts.scheme])
    try:
        if parts.scheme == "udp":
            _send_datagrams(place, entries)
            return
        with socket.create_connection(place, timeout=TIMEOUT_S) as plain:
            stream = ssl.create_default_context().wrap_socket(plain, server_hostname=place[0]) if parts.scheme == "tls" else plain
            with stream:
                for entry in entries:
                    message = syslog_message(entry)
                    stream.sendall(b"%d %b" % (len(message), message))
                _wait_for_end(stream)
    except OSError as error:
        raise NotTaken(f"The syslog server at {place[0]} port {place[1]} did not take it: {error}") from error


def _send_datagrams(place: tuple[str, int], entries: Sequence[Entry]) -> None:
    family = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0][0]
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as sender:
        sender.connect(place)
        for entry in entries:
            message = syslog_message(entry)
            if len(message) > LARGEST_DATAGRAM:
                message = syslog_message({**entry, "details": "too large for a datagram"})
            sender.send(message)


def _wait_for_end(stream: socket.socket) -> None:
    """Syslog has no answer: a server that closes after us has read everything, one that resets has not; one that stays silent is believed."""
    stream.settimeout(FAREWELL_S)
    try:
        if isinstance(stream, ssl.SSLSocket):
            stream.unwrap()
        else:
            stream.shutdown(socket.SHUT_WR)
            stream.recv(1)
    except TimeoutError:
        return
    except ssl.SSLError as error:
        # Many servers end the connection without a last word of TLS.
        if "EOF" not in str(error) and "APPLICATION_DATA" not in str(error):
            raise


def send_webhook(url: str, secret: str, entries: Sequence[Entry]) -> None:
    """POST a batch as JSON. Raises NotTaken for anything but success; redirects are not followed."""
    parts = urlsplit(url)
    body = json.dumps({"first_seq": entries[0]["seq"], "last_seq": entries[-1]["seq"], "entries": list(entries)}, ensure_ascii=False).encode(
        "utf-8", "replace"
    )
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", target_of(parts), body, signed_headers(secret, body))
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise NotTaken(f"The webhook at {parts.hostname} did not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if not 200 <= status < 300:  # noqa: PLR2004 - success as HTTP has it
        raise NotTaken(f"The webhook at {parts.hostname} answered {status}.")
