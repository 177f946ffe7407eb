"""Endpoints of second factors: one's own app, and which roles must have one."""

from collections.abc import Iterator

from flask import make_response
from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.endpoints import Endpoint
from portal.api.schemas import TEXT, Input, read, thing
from portal.http.request import context, give_session, token_from_header
from portal.identity import accounts, factors, sign_in, users
from portal.kernel.authz import authorize
from portal.kernel.errors import Forbidden, InvalidRequest, Unauthorized

TAG = "Users"
NEW_DEVICE = thing(device_id=TEXT, name=TEXT, secret=TEXT, otpauth_uri=TEXT)
CODES = thing(recovery_codes={"type": "array", "items": TEXT})
RULES = thing(roles={"type": "array", "items": TEXT})


class NewDevice(Input):
    """An authenticator app."""

    device_name: str = Field(min_length=1, max_length=factors.NAME_MAX)
    password: str = Field("", max_length=1024, description="Your own; needed unless the request is made in a session.")
    otp: str = Field("", max_length=100, description="A code of a device that you have already, if there is one; with the password.")


class FirstCode(Input):
    """The first code of an app."""

    code: str = Field(min_length=6, max_length=10)


class Rules(Input):
    """Roles whose holders must have a second factor."""

    roles: list[str] = Field(max_length=20)


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    at = "/security/users/{user_id}/mfa"
    yield Endpoint("POST", at, "mfa.create", create, "Begin to use an authenticator app; its secret is shown this once", TAG, {201: NEW_DEVICE},
                   (403, 409), body=NewDevice.model_json_schema())  # fmt: skip
    yield Endpoint("POST", at + "/{device_id}/confirm", "mfa.confirm", confirm, "Take the app into use with its first code", TAG, {200: CODES},
                   (403, 404, 409), body=FirstCode.model_json_schema())  # fmt: skip
    yield Endpoint(
        "DELETE", at, "mfa.delete", reset, "Forget a user's apps, passkeys and recovery codes; they are signed out", TAG, {204: None}, (403, 404)
    )
    yield Endpoint("GET", "/security/sign-in-rules", "sign-in-rules.get", rules, "Which roles must have a second factor", TAG, {200: RULES}, (403,))
    yield Endpoint("PUT", "/security/sign-in-rules", "sign-in-rules.put", rules_set, "Say which roles must", TAG, {200: RULES}, (403,),
                   body=Rules.model_json_schema())  # fmt: skip


def create(user_id: str) -> ResponseReturnValue:
    """A new app of one's own."""
    given: NewDevice = read(NewDevice)
    ctx = context()
    _oneself(user_id)
    is_token = not ctx.principal.credential.startswith("session:")
    if is_token:
        _check_password(given.password, given.otp)
    device, secret, uri = factors.totp_begin(ctx, given.device_name, with_password=is_token)
    return io.answer({"device_id": device.id, "name": device.name, "secret": secret, "otpauth_uri": uri}, 201)


def confirm(user_id: str, device_id: str) -> ResponseReturnValue:
    """Its first code."""
    given: FirstCode = read(FirstCode)
    _oneself(user_id)
    activated = factors.totp_confirm(context(), device_id, given.code)
    response = make_response(io.answer({"recovery_codes": activated.codes}))
    if activated.session_secret and token_from_header() is None:
        give_session(response, activated.session_secret)
    return response


def reset(user_id: str) -> ResponseReturnValue:
    """What an administrator does for somebody who lost their device."""
    factors.factors_reset(context(), users.user_find(context(), user_id))
    return io.empty()


def rules() -> ResponseReturnValue:
    """The rules."""
    ctx = context()
    authorize(ctx, "identity.mfa.require", factors.RULES)
    return io.answer({"roles": sorted(factors.roles_required(ctx.db))})


def rules_set() -> ResponseReturnValue:
    """Others."""
    given: Rules = read(Rules)
    factors.rules_update(context(), given.roles)
    return rules()


def _oneself(user_id: str) -> None:
    accounts.refuse_assumed(context())
    if user_id != context().principal.user_id:
        raise Forbidden("An app is set up by whoever holds the phone: you can do that for yourself only.")


def _check_password(password: str, otp: str) -> None:
    if not password:
        raise InvalidRequest.fields({"password": ["is required: a token alone does not change how you sign in."]})
    ctx = context()
    try:
        sign_in.check(ctx, ctx.principal.username, password, otp)
    except Unauthorized as error:
        raise InvalidRequest.fields({"otp" if error.details else "password": [error.message]}) from None
