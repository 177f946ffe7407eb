"""Websites: what S3 clients set, and what browsers get at `<bucket>.<S3_WEBSITE_DOMAIN>`, where nobody signs and mistakes are told in HTML."""

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from http import HTTPStatus
from typing import Any

from sqlalchemy import select

from portal.kernel.errors import InvalidRequest, PortalError
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import cors, objects, xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.s3.refusals import refusal_of
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.object_models import Bucket
from portal.storage.websites import RoutingRule, Website, bucket_set_website, quoted_path, website_of

REDIRECT = "x-amz-website-redirect-location"
MOVED, FOUND, NOT_THERE = 301, 302, (403, 404)


# -- what visitors get -----------------------------------------------------------------------------------------------------------------------


def serve(x: Exchange) -> Answer:
    """Answer a visitor of a website."""
    if x.request.method == "OPTIONS":
        return cors.preflight(x)
    if x.request.method not in {"GET", "HEAD"}:
        raise S3Error("MethodNotAllowed", headers={"Allow": "GET, HEAD, OPTIONS"}, Method=x.request.method, ResourceType="OBJECT")
    site = _site(x)
    if site.redirect_all is not None:
        protocol = site.redirect_all.protocol or _protocol(x)
        return _sent(f"{protocol}://{site.redirect_all.host}/{quoted_path(x.key)}{_query(x)}", MOVED)
    if (rule := _rule_for(site, x.key, None)) is not None:
        return _by_rule(x, rule)
    key = x.key + site.index_document if not x.key or x.key.endswith("/") else x.key
    try:
        return _page(x, key)
    except S3Error as error:
        return _instead(x, site, error)


def _site(x: Exchange) -> Website:
    bucket = bucket_named(x.ctx.db, x.bucket)
    kept = x.ctx.db.scalars(select(Bucket.website).where(Bucket.id == bucket.id)).first()
    if not kept:
        raise S3Error("NoSuchWebsiteConfiguration", BucketName=bucket.name)
    return website_of(kept)


def _protocol(x: Exchange) -> str:
    return "https" if x.request.is_secure else "http"


def _query(x: Exchange) -> str:
    return f"?{x.request.raw_query}" if x.request.raw_query else ""


def _page(x: Exchange, key: str) -> Answer:
    """An object as a page; what its headers say of another place is followed."""
    asked = replace(x, request=replace(x.request, key=key, raw_query=""))
    try:
        answer = objects.get(asked)
    except PortalError as error:
        raise refusal_of(error) from error
    if to := answer.headers.get(REDIRECT):
        _let_go(answer)
        return _sent(to if to.startswith(("http://", "https://")) else f"{_protocol(x)}://{x.request.host}/{to.lstrip('/')}", MOVED)
    return answer


def _let_go(answer: Answer) -> None:
    if (close := getattr(answer.body, "close", None)) is not None:
        close()


def _instead(x: Exchange, site: Website, error: S3Error) -> Answer:
    """What is answered where there is no page: the folder of the name, what a rule says, or the site's own page for it."""
    if error.status not in NOT_THERE:
        raise error
    if x.key and not x.key.endswith("/") and _is_there(x, f"{x.key}/{site.index_document}"):
        return _sent(f"{_protocol(x)}://{x.request.host}/{quoted_path(x.key)}/{_query(x)}", FOUND)
    if (rule := _rule_for(site, x.key, error.status)) is not None:
        return _by_rule(x, rule)
    if not site.error_document:
        raise error
    unconditional = {name: value for name, value in x.request.headers.items() if name != "range" and not name.startswith("if-")}
    try:
        answer = _page(replace(x, request=replace(x.request, headers=unconditional)), site.error_document)
    except S3Error as also:
        error.message += f" The page for errors cannot be shown either: {also.code}."
        raise error from also
    return answer if answer.status == MOVED else replace(answer, status=error.status)


def _is_there(x: Exchange, key: str) -> bool:
    try:
        _let_go(_page(replace(x, request=replace(x.request, method="HEAD", headers={})), key))
    except S3Error:
        return False
    return True


def _rule_for(site: Website, key: str, code: int | None) -> RoutingRule | None:
    return next((rule for rule in site.routing_rules if rule.fits(key, code)), None)


def _by_rule(x: Exchange, rule: RoutingRule) -> Answer:
    return _sent(rule.location(x.key, _protocol(x), x.request.host), rule.redirect.code)


def _sent(location: str, status: int) -> Answer:
    return Answer(status, {"Location": "".join(c for c in location if c.isprintable()).encode().decode("latin-1")})


def refusal(error: S3Error, request_id: str) -> Answer:
    """A refusal as visitors see it."""
    title = f"{error.status} {HTTPStatus(error.status).phrase}"
    told = {"Code": error.code, "Message": error.message, **{name: str(value) for name, value in error.details.items()}, "RequestId": request_id}
    items = "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in told.items())
    page = f'<!doctype html>\n<html lang="en"><head><title>{title}</title></head><body><h1>{title}</h1><ul>{items}</ul></body></html>\n'
    return Answer(error.status, {"Content-Type": "text/html; charset=utf-8", **error.headers}, page.encode())


# -- what S3 clients set ---------------------------------------------------------------------------------------------------------------------


def is_site(host: str, domain: str) -> bool:
    """Whether a request is for a website: its host is a sub-domain of the domain of websites."""
    return bool(domain) and host.lower().partition(":")[0].endswith(f".{domain.lower()}")


def get(x: Exchange) -> Answer:
    """The website of a bucket."""
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    if not row.website:
        raise S3Error("NoSuchWebsiteConfiguration", BucketName=row.name)
    site = website_of(row.website)
    parts = []
    if site.redirect_all is not None:
        parts.append(xml.group("RedirectAllRequestsTo", *_leaves({"HostName": site.redirect_all.host, "Protocol": site.redirect_all.protocol})))
    if site.index_document:
        parts.append(xml.group("IndexDocument", xml.leaf("Suffix", site.index_document)))
    if site.error_document:
        parts.append(xml.group("ErrorDocument", xml.leaf("Key", site.error_document)))
    if site.routing_rules:
        parts.append(xml.group("RoutingRules", *(_element(rule) for rule in site.routing_rules)))
    return document("WebsiteConfiguration", *parts)


def _leaves(values: Mapping[str, str | None]) -> list[str]:
    return [xml.leaf(name, value) for name, value in values.items() if value]


def _element(rule: RoutingRule) -> str:
    when, to = rule.condition, rule.redirect
    condition = _leaves({"KeyPrefixEquals": when.key_prefix, "HttpErrorCodeReturnedEquals": str(when.error_code) if when.error_code else None})
    code = str(to.code) if "code" in to.model_fields_set else None
    redirect = _leaves({"HostName": to.host, "HttpRedirectCode": code, "Protocol": to.protocol})
    replaced = {"ReplaceKeyPrefixWith": to.replace_prefix, "ReplaceKeyWith": to.replace_key}
    redirect += [xml.leaf(name, value) for name, value in replaced.items() if value is not None]
    return xml.group("RoutingRule", *([xml.group("Condition", *condition)] if condition else []), xml.group("Redirect", *redirect))


def put(x: Exchange) -> Answer:
    """Make a bucket a website, in place of the one it is."""
    return _set(x, _read(x.document("WebsiteConfiguration")), 200)


def _read(node: xml.Node) -> dict[str, Any]:
    index, error, everything, rules = (node.child(name) for name in ("IndexDocument", "ErrorDocument", "RedirectAllRequestsTo", "RoutingRules"))
    found: dict[str, Any] = {}
    if index is not None:
        found["index_document"] = index.value("Suffix") or ""
    if error is not None:
        found["error_document"] = error.value("Key") or ""
    if everything is not None:
        found["redirect_all"] = {"host": everything.value("HostName") or "", "protocol": everything.value("Protocol") or ""}
    if rules is not None:
        found["routing_rules"] = [_rule(each) for each in rules.children_named("RoutingRule")]
    return found


def _rule(node: xml.Node) -> dict[str, Any]:
    when, to = node.child("Condition"), node.child("Redirect")
    if to is None:
        raise S3Error("MalformedXML")
    condition = (
        {"key_prefix": when.value("KeyPrefixEquals"), "error_code": _code(when.value("HttpErrorCodeReturnedEquals"))} if when is not None else {}
    )
    redirect = {
        "host": to.value("HostName"), "protocol": to.value("Protocol"), "code": _code(to.value("HttpRedirectCode")),
        "replace_prefix": to.value("ReplaceKeyPrefixWith"), "replace_key": to.value("ReplaceKeyWith"),
    }  # fmt: skip
    return {
        "condition": {name: value for name, value in condition.items() if value is not None},
        "redirect": {name: value for name, value in redirect.items() if value is not None},
    }


def _code(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) == 3):  # noqa: PLR2004 - digits of a status
        raise S3Error("MalformedXML")
    return int(text)


def delete(x: Exchange) -> Answer:
    """Make a bucket no website any more."""
    return _set(x, {}, 204)


def _set(x: Exchange, configuration: dict[str, Any], status: int) -> Answer:
    if status == 200 and not configuration:  # noqa: PLR2004 - a website is set
        raise S3Error("MalformedXML")
    try:
        run(x.ctx, bucket_set_website, bucket_named(x.ctx.db, x.bucket).id, {"configuration": configuration})
    except InvalidRequest as error:
        raise S3Error("InvalidArgument", error.message) from error
    return Answer(status)
