"""The S3 gateway: a WSGI application of its own, because signatures cover the address as it was sent, and bodies are streamed.

A request is read, its signature verified, the action found and done; whatever is refused becomes one of the codes of S3.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from portal.engines.object_ports import BlobStore
from portal.engines.ports import EngineError
from portal.identity.s3_keys import KeyHolder, s3_key_holder, s3_key_used
from portal.kernel.addresses import canonical
from portal.kernel.context import ANONYMOUS, Context, Principal
from portal.kernel.db import now, out_of_service
from portal.kernel.errors import PortalError
from portal.kernel.resource import Registry
from portal.logging import REQUEST_ID
from portal.s3 import cors, signatures, websites, xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange
from portal.s3.limits import RequestLimits
from portal.s3.records import Asked, Counted, record_of
from portal.s3.refusals import failure_of, refusal_of
from portal.s3.requests import S3Request, read_request
from portal.s3.routes import Action, action_for
from portal.s3.signing import SecretOf, Signed
from portal.settings import Settings
from portal.storage.traffic import TrafficFiles

log = logging.getLogger("portal.s3")
access = logging.getLogger("portal.access")
StartResponse = Callable[..., Any]
NO_BODY = {204, 304}


class Gateway:
    """The application; it knows no state but that of the database and of the blobs."""

    def __init__(
        self, settings: Settings, sessions: sessionmaker[Session], registry: Registry, blobs: BlobStore, traffic: TrafficFiles | None = None
    ) -> None:  # fmt: skip
        """`sessions` are opened one for each request; `traffic` is where requests are written down."""
        self._settings, self._sessions, self._registry, self._blobs = settings, sessions, registry, blobs
        self._limits = RequestLimits(settings)
        self._traffic = traffic

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        begun, request_id = time.perf_counter(), f"req-{secrets.token_hex(8)}"
        REQUEST_ID.set(request_id)
        method = environ["REQUEST_METHOD"]
        asked = Asked(is_site=websites.is_site(environ.get("HTTP_HOST", ""), self._settings.s3_website_domain), begun=begun)
        try:
            domain = self._settings.s3_website_domain if asked.is_site else self._settings.s3_domain
            asked.request = read_request(environ, domain or None)
            answer = self._answer(asked.request, request_id, asked)
        except S3Error as error:
            asked.refused = error
            answer = websites.refusal(error, request_id) if asked.is_site else _refusal(error, environ, request_id)
        body, length = answer.body, answer.length
        if isinstance(body, bytes):
            length = len(body) if length is None else length
            body = iter((body,) if body else ())
        headers = {"x-amz-request-id": request_id, "Server": "Atonix", **answer.headers}
        if answer.status not in NO_BODY:
            headers["Content-Length"] = str(length or 0)
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", list(headers.items()))
        asked.turned = time.perf_counter()
        access.info(
            "%s %s %s%s", method, environ.get("PATH_INFO", ""), answer.status, f" {asked.refused.code}" if asked.refused else "",
            extra={"request_id": request_id, "user_id": asked.user_id, "method": method, "path": environ.get("PATH_INFO", ""),
                   "status_code": answer.status, "duration_ms": round((asked.turned - begun) * 1000, 1)},
        )  # fmt: skip
        if method == "HEAD":
            body = _nothing(body)
        return body if self._traffic is None else Counted(body, partial(self._write_down, asked, replace(answer, length=length), request_id))

    def _write_down(self, asked: Asked, answer: Answer, request_id: str, sent: int) -> None:
        record = record_of(asked, answer, request_id=request_id, sent=sent, ended=time.perf_counter())
        if record is not None and self._traffic is not None:
            self._traffic.add(record)

    def _answer(self, request: S3Request, request_id: str, asked: Asked) -> Answer:
        session = self._sessions()
        try:
            exchange = self._exchange(session, request, request_id, asked)
            return self._with_origin(session, request, websites.serve if asked.is_site else action_for(request), exchange)
        except PortalError as error:
            raise refusal_of(error) from error
        except EngineError as error:
            # The engine has said what is wrong; where in the portal that was found helps nobody.
            log.error("%s %s: %s", request.method, request.raw_path, error.message, extra={"request_id": request_id})  # noqa: TRY400
            raise failure_of(error) from error
        except OperationalError as error:
            raise S3Error("ServiceUnavailable", out_of_service(error)) from error
        except S3Error:
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, request.raw_path, extra={"request_id": request_id})
            raise S3Error("InternalError") from error
        finally:
            session.close()

    def _client(self, request: S3Request) -> str:
        """The client's address, as the trusted proxies say; empty where they say nothing sensible."""
        proxies = self._settings.trusted_proxies
        told = [each.strip() for each in request.header("x-forwarded-for").split(",")]
        address = told[-proxies] if proxies and len(told) >= proxies else request.remote_address
        return canonical(address)

    @staticmethod
    def _with_origin(session: Session, request: S3Request, action: Action, exchange: Exchange) -> Answer:
        """The answer of an action; a page of another origin is told what the bucket's rules say, whatever comes of it."""
        said = cors.headers_for(session, request)
        if not said:
            return action(exchange)
        try:
            answer = action(exchange)
        except PortalError as error:
            refused = refusal_of(error)
            refused.headers |= said
            raise refused from error
        except S3Error as error:
            error.headers |= said
            raise
        return replace(answer, headers={**answer.headers, **said})

    def _exchange(self, session: Session, request: S3Request, request_id: str, asked: Asked) -> Exchange:
        asked.address = self._client(request)
        ctx = Context(
            session, self._settings, self._registry, ANONYMOUS, request_id=request_id, source="s3", source_ip=asked.address,
            user_agent=request.header("user-agent")[:255],
        )  # fmt: skip

        def identify(verify: Callable[[SecretOf], Signed | None]) -> Signed | None:
            holders: dict[str, KeyHolder] = {}

            def secret_of(key_id: str) -> str | None:
                if (holder := s3_key_holder(session, self._settings, key_id)) is None:
                    return None
                holders[key_id] = holder
                return holder.secret

            try:
                signed = verify(secret_of)
            except S3Error:
                # Guessing is slowed down; whoever signs with a key that is right does not suffer from a neighbour.
                self._limits.count_address(ctx.source_ip)
                raise
            if signed is None:
                self._limits.count_address(ctx.source_ip)
            else:
                self._limits.count_key(signed.access_key)
                holder = holders[signed.access_key]
                ctx.identify_again = partial(_principal_of, session, self._settings, signed.access_key)
                ctx.principal, ctx.project_id, asked.user_id = holder.principal, holder.project_id, holder.principal.user_id
                s3_key_used(session, holder, ctx.source_ip)
            return signed

        # Visitors of websites are nobody in particular.
        signed = None if asked.is_site else identify(lambda secret_of: signatures.verify(request, secret_of, now()))
        return Exchange(request, signed, ctx, self._blobs, identify)


def _principal_of(session: Session, settings: Settings, key_id: str) -> Principal | None:
    """Who is behind a key by now; None if it counts no more."""
    session.rollback()
    holder = s3_key_holder(session, settings, key_id)
    return holder.principal if holder is not None else None


def _nothing(body: Iterator[bytes]) -> Iterator[bytes]:
    """An answer to HEAD: what a GET would give is let go of."""
    if (close := getattr(body, "close", None)) is not None:
        close()
    return iter(())


def _refusal(error: S3Error, environ: dict[str, Any], request_id: str) -> Answer:
    if error.status in NO_BODY:
        return Answer(error.status, error.headers)
    resource = str(environ.get("RAW_URI", "")).partition("?")[0]
    return Answer(error.status, {"Content-Type": "application/xml", **error.headers}, xml.error_document(error, resource, request_id))
