"""Passkeys (WebAuthn): as a second factor, and to sign in without a password where the authenticator has checked who holds it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)  # fmt: skip
from webauthn.helpers import base64url_to_bytes, bytes_to_base64url
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)  # fmt: skip

from portal.identity import factors, sign_in
from portal.identity.accounts import checked_name, note_failure, oneself, require_person, session_renew
from portal.identity.factors import PASSKEY, MfaDevice
from portal.identity.models import User
from portal.identity.sign_in import CONFIRM, PASSKEY_ENTRY, PASSKEY_NEW, SECOND, Proof, Step
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, InvalidRequest, Unauthorized
from portal.kernel.ids import storable
from portal.kernel.operations import acting

MAX_ANSWER = 16_384
MAX_ID = 1400
NOT_OURS = "This passkey is not known here, or it did not answer what was asked."


@dataclass(frozen=True, slots=True)
class Site:
    """The portal as browsers know it: host name, and origin with scheme and port. A passkey works for that host alone."""

    host: str
    origin: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What the browser is to ask an authenticator, as JSON, and the secret under which the answer is expected."""

    secret: str
    options: str


def passkey_begin(ctx: Context, site: Site) -> Asked:
    """Begin to register a passkey for the caller. Raises Conflict at the limit."""
    require_person(ctx)
    user, known = ctx.db.get_one(User, ctx.principal.user_id), factors.devices_of(ctx.db, ctx.principal.user_id, PASSKEY)
    secret, row = sign_in.challenge_begin(ctx, PASSKEY_NEW, user.id)
    options = generate_registration_options(
        rp_id=site.host, rp_name=factors.ISSUER, user_name=user.username, user_id=user.id.encode(), challenge=base64url_to_bytes(row.challenge),
        exclude_credentials=_descriptors(known),
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.PREFERRED, user_verification=UserVerificationRequirement.PREFERRED
        ),
    )  # fmt: skip
    return Asked(secret, options_to_json(options))


def passkey_create(ctx: Context, site: Site, secret: str, name: str, answer: str) -> factors.Activated:
    """Keep the passkey that an authenticator made, and take it into use. Raises InvalidRequest or Conflict."""
    require_person(ctx)
    row = sign_in.challenge_take(ctx, secret, PASSKEY_NEW)
    if row.user_id != ctx.principal.user_id:
        raise Unauthorized(sign_in.OVER)
    try:
        made = verify_registration_response(
            credential=_parsed(answer), expected_challenge=base64url_to_bytes(row.challenge), expected_rp_id=site.host, expected_origin=site.origin
        )
    except (WebAuthnException, ValueError, KeyError, TypeError):
        raise InvalidRequest.fields({"credential": ["is not what an authenticator answers to this request. Try again."]}) from None
    if len(made.credential_id) > MAX_ID // 2:
        raise InvalidRequest.fields({"credential": ["has a longer id than an authenticator gives."]})
    device = MfaDevice(
        user_id=ctx.principal.user_id, device_type=PASSKEY, name=checked_name(name, longest=factors.NAME_MAX), credential_id=bytes_to_base64url(made.credential_id),
        public_key=bytes_to_base64url(made.credential_public_key), sign_count=made.sign_count,
    )  # fmt: skip
    with acting(ctx, "identity.mfa.create", oneself(ctx), details={"device_type": PASSKEY, "name": device.name}):
        factors.refuse_too_many(ctx)
        if ctx.db.scalar(select(MfaDevice.id).where(MfaDevice.credential_id == device.credential_id)) is not None:
            raise Conflict("This passkey is registered already.")
        activated = factors.activate(ctx, device)
        ctx.db.add(device)
    return activated


def passkey_ask(ctx: Context, site: Site) -> Asked:
    """Ask for a passkey of whoever it is, to sign in without a name or password."""
    secret, row = sign_in.challenge_begin(ctx, PASSKEY_ENTRY, None)
    return Asked(secret, _request(site, row.challenge, (), UserVerificationRequirement.REQUIRED))


def passkey_confirm_ask(ctx: Context, site: Site) -> Asked:
    """Ask for a passkey of the caller, to prove again who they are."""
    secret, row = sign_in.challenge_begin(ctx, CONFIRM, ctx.principal.user_id)
    return Asked(secret, _request(site, row.challenge, factors.devices_of(ctx.db, row.user_id, PASSKEY), UserVerificationRequirement.PREFERRED))


def second_options(ctx: Context, site: Site, secret: str) -> str:
    """What to ask an authenticator for in the second step of a sign-in; empty for a user without passkeys. Raises Unauthorized."""
    row = sign_in.challenge_of(ctx, secret, SECOND)
    known = factors.devices_of(ctx.db, row.user_id, PASSKEY)
    return _request(site, row.challenge, known, UserVerificationRequirement.PREFERRED) if known else ""


def passkey_enter(ctx: Context, site: Site, secret: str, answer: str) -> Step:
    """Sign in with a passkey alone. Raises Unauthorized."""
    row = sign_in.challenge_take(ctx, secret, PASSKEY_ENTRY)
    device = _check(ctx, site, row.challenge, answer, None, is_alone=True)
    return sign_in.enter(ctx, ctx.db.get_one(User, device.user_id), Proof("passkey", mfa=True))


def passkey_second(ctx: Context, site: Site, secret: str, answer: str) -> Step:
    """The second step of a sign-in with a passkey. Raises Unauthorized."""
    row = sign_in.challenge_of(ctx, secret, SECOND)
    try:
        _check(ctx, site, row.challenge, answer, row.user_id)
    except Unauthorized:
        sign_in.challenge_take(ctx, secret, SECOND)
        raise
    return sign_in.second_by_passkey(ctx, row)


def passkey_confirm(ctx: Context, site: Site, secret: str, answer: str) -> str:
    """Prove again with a passkey who one is. The session's new secret. Raises Unauthorized."""
    row = sign_in.challenge_take(ctx, secret, CONFIRM)
    if row.user_id != ctx.principal.user_id:
        raise Unauthorized(sign_in.OVER)
    _check(ctx, site, row.challenge, answer, row.user_id)
    with transaction(ctx.db):
        return session_renew(ctx, is_factor=True)


def _check(ctx: Context, site: Site, challenge: str, answer: str, user_id: str | None, *, is_alone: bool = False) -> MfaDevice:
    """The passkey that signed a challenge; its counter is moved on. Raises Unauthorized with the same words for every reason, and writes it down."""
    try:
        return _answered(ctx, site, challenge, answer, user_id, is_alone=is_alone)
    except Unauthorized as error:
        note_failure(ctx, None, "passkey", counts=False, error=error.message)
        raise


def _answered(ctx: Context, site: Site, challenge: str, answer: str, user_id: str | None, *, is_alone: bool) -> MfaDevice:
    try:
        given = _parsed(answer)
        with transaction(ctx.db):
            query = select(MfaDevice).where(
                MfaDevice.credential_id == storable(str(given.get("id", ""))[:MAX_ID]), MfaDevice.confirmed_at.is_not(None)
            )
            device = ctx.db.scalars(query.with_for_update().execution_options(populate_existing=True)).first()
            if device is None or user_id not in {None, device.user_id}:
                raise Unauthorized(NOT_OURS)
            verified = verify_authentication_response(
                credential=given, expected_challenge=base64url_to_bytes(challenge), expected_rp_id=site.host, expected_origin=site.origin,
                credential_public_key=base64url_to_bytes(device.public_key), credential_current_sign_count=device.sign_count,
                require_user_verification=is_alone,
            )  # fmt: skip
            device.sign_count, device.last_used_at = verified.new_sign_count, now()
    except (WebAuthnException, ValueError, KeyError, TypeError):
        raise Unauthorized(NOT_OURS) from None
    return device


def _request(site: Site, challenge: str, known: Sequence[MfaDevice], verification: UserVerificationRequirement) -> str:
    options = generate_authentication_options(
        rp_id=site.host, challenge=base64url_to_bytes(challenge), allow_credentials=_descriptors(known), user_verification=verification
    )
    return options_to_json(options)


def _descriptors(known: Sequence[MfaDevice]) -> list[PublicKeyCredentialDescriptor]:
    return [PublicKeyCredentialDescriptor(base64url_to_bytes(device.credential_id or "")) for device in known]


def _parsed(answer: str) -> dict[str, object]:
    found = json.loads(answer[:MAX_ANSWER])
    if not isinstance(found, dict):
        msg = "no object"
        raise TypeError(msg)
    return found
