"""Tables of identity as the kernel sees them: it does not know the models, it only asks who and what is there."""

from sqlalchemy import column, select, table
from sqlalchemy.orm import Session

PROJECTS = table("projects", column("id"), column("name"), column("deleted_at"))
USERS = table("users", column("id"), column("username"), column("kind"), column("platform_role"), column("is_active"))


def lock_users(session: Session, *user_ids: str | None) -> None:
    """Keep users from being deleted until the transaction ends: before their quota rows are locked, since a deletion locks in this order, too."""
    wanted = sorted({user_id for user_id in user_ids if user_id is not None})
    if wanted:
        session.execute(select(USERS.c.id).where(USERS.c.id.in_(wanted)).order_by(USERS.c.id).with_for_update(read=True, key_share=True))
