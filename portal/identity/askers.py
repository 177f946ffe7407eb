"""Work that somebody asked for is done as them: with what they may now, not when they asked."""

from dataclasses import replace

from sqlalchemy import select

from portal.identity import iam
from portal.identity.accounts import principal_of
from portal.identity.models import User
from portal.kernel.context import Context
from portal.kernel.errors import Forbidden


def as_asker(ctx: Context, user_id: str | None, job_id: str, project_id: str | None) -> Context:
    """The context of a job as that of whoever asked for it. Raises Forbidden if they may not sign in any more."""
    user = ctx.db.scalars(select(User).where(User.id == user_id, User.is_active.is_(True))).first()
    if user is None:
        raise Forbidden("Whoever asked for this may not sign in any more.")
    principal = iam.with_access(ctx.db, principal_of(user, f"job:{job_id}"), ctx.db.scalar(select(iam.REVISION)))
    return replace(ctx, principal=principal, project_id=project_id)
