"""Keys that sign access tokens: ES256, in the database, the private part encrypted with a key that is derived from SECRET_KEY."""

import json
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from joserfc.jwk import ECKey
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from portal.identity.oauth2.models import OAuthKey
from portal.identity.sealed import seal, unseal
from portal.kernel.db import now, transaction
from portal.kernel.ids import new_id
from portal.settings import Settings

ALGORITHM = "ES256"
LEEWAY_S = 30

log = logging.getLogger("portal.oauth2")


def signing_key(session: Session, settings: Settings) -> ECKey:
    """The key that signs now, made if there is none that can be read, within the caller's transaction.

    One that cannot be read is left alone: while SECRET_KEY is being changed, other processes sign with it.
    """
    for row in session.scalars(select(OAuthKey).where(OAuthKey.retired_at.is_(None)).order_by(OAuthKey.created_at.desc())):
        if (private := unseal(settings, row.private_sealed)) is not None:
            return ECKey.import_key(json.loads(private))
        log.info("the signing key %s cannot be read with this SECRET_KEY", row.kid)
    return _new_key(session, settings)


def _new_key(session: Session, settings: Settings) -> ECKey:
    key = ECKey.generate_key("P-256", {"kid": new_id("key"), "use": "sig", "alg": ALGORITHM})
    sealed = seal(settings, json.dumps(key.as_dict(private=True)))
    session.add(OAuthKey(kid=key.kid, public_jwk=key.as_dict(private=False), private_sealed=sealed))
    session.flush()
    return key


def public_key(session: Session, kid: str) -> ECKey | None:
    """The key with this id, for verifying; None if it is unknown."""
    row = session.get(OAuthKey, kid)
    return ECKey.import_key(dict(row.public_jwk)) if row is not None else None


def public_keys(session: Session) -> Sequence[dict[str, Any]]:
    """Every public key that a token in use may be signed with, newest first (RFC 7517)."""
    return [dict(row.public_jwk) for row in session.scalars(select(OAuthKey).order_by(OAuthKey.created_at.desc()))]


def keys_rotate(session: Session, settings: Settings) -> None:
    """Replace a key that has signed for long enough; forget those whose last token has expired."""
    moment = now()
    last = timedelta(minutes=settings.oauth2_access_token_minutes, seconds=2 * LEEWAY_S)
    with transaction(session):
        session.execute(delete(OAuthKey).where(OAuthKey.retired_at < moment - last))
        old = (OAuthKey.retired_at.is_(None), OAuthKey.created_at < moment - timedelta(days=settings.oauth2_key_days))
        if session.scalars(update(OAuthKey).where(*old).values(retired_at=moment).returning(OAuthKey.kid)).all():
            signing_key(session, settings)
