"""The quotas of a project and the limits of users as people see them, and how an administrator changes one."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from portal.kernel import audit, quota
from portal.kernel.authz import Target, decide
from portal.kernel.context import Context
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound, request_url
from portal.kernel.ids import is_storable, storable
from portal.kernel.operations import acting
from portal.kernel.projects import is_there
from portal.kernel.quota import DIMENSIONS, USER_DIMENSIONS, Dimension, Quota, UserQuota
from portal.kernel.tables import USERS, lock_users

UPDATE = "core.quota.update"
HIGHEST = 2**53


@dataclass(frozen=True, slots=True)
class QuotaLine:
    """One dimension of a quota, in the unit of the dimension; `reserved` is the part of `used` that is for work not finished yet."""

    dimension: str
    label: str
    unit: str
    limit: int | None
    used: int
    reserved: int = 0
    warning_threshold: int = quota.WARNING_THRESHOLD

    @property
    def left(self) -> int | None:
        """What may still be taken; None where there is no limit."""
        return None if self.limit is None else max(0, self.limit - self.used)

    @property
    def tone(self) -> str:
        """`warn` from the threshold on, `bad` where nothing is left."""
        return ("", "warn", "bad")[quota.level(self.limit, self.used, self.warning_threshold)]


@dataclass(frozen=True, slots=True)
class UserLimit:
    """What one user may own of one dimension, in all projects together."""

    user_id: str
    username: str
    line: QuotaLine


def _line(known: Dimension, row: Quota | UserQuota | None, default: int | None, reserved: int = 0) -> QuotaLine:
    if row is None:
        return QuotaLine(known.name, known.label, known.unit, default, 0)
    return QuotaLine(known.name, known.label, known.unit, row.limit, row.used, min(reserved, row.used), row.warning_threshold)


def quota_lines(ctx: Context, project_id: str) -> list[QuotaLine]:
    """The limited dimensions of a project, in their usual order. Raises NotFound."""
    require(ctx, project_id)
    query = select(Quota).where(Quota.project_id == project_id, Quota.dimension.in_(DIMENSIONS)).execution_options(populate_existing=True)
    rows, reserved = {row.dimension: row for row in ctx.db.scalars(query)}, quota.reserved(ctx.db, project_id)
    return [_line(known, rows.get(name), known.default, reserved.get(name, 0)) for name, known in DIMENSIONS.items()]


def require(ctx: Context, project_id: str) -> None:
    """Raise NotFound unless there is a project whose quotas the caller may read."""
    known = is_storable(project_id) and is_there(ctx.db, project_id)
    if not known or not decide(ctx, "core.quota.read", Target(project_id)).allowed:
        raise NotFound(f"There is no project {project_id[:80]} here.")


def known_dimension(dimension: str) -> Dimension:
    """The dimension of this name. Raises NotFound."""
    return _known(dimension, DIMENSIONS)


def _known(dimension: str, among: Mapping[str, Dimension]) -> Dimension:
    if dimension not in among:
        raise NotFound(f"There is no quota {dimension[:80]}; there are {', '.join(among)}.")
    return among[dimension]


def quota_update(ctx: Context, project_id: str, dimension: str, limit: int, *, warning_threshold: int | None = None) -> QuotaLine:
    """Set a limit; one below what is in use stops what is new and takes nothing away. Raises NotFound, Forbidden or InvalidRequest.

    With four eyes, nobody raises one alone while somebody else could approve it.
    """
    known = known_dimension(dimension)
    require(ctx, project_id)
    details: dict[str, object] = {}
    with acting(ctx, UPDATE, subject_of(project_id, dimension), target=Target(project_id, label=f"quota {dimension}"), details=details):
        _refuse_odd(limit, warning_threshold)
        quota.ensure(ctx.db, project_id, dimension)
        row = quota_locked(ctx, project_id, dimension)
        if row.limit is not None and limit > row.limit:
            _refuse_alone(ctx, f"Ask for it at {request_url(dimension)}; the other approves.", {"request_url": request_url(dimension)})
        limit_set(ctx, row, limit, details, warning_threshold=warning_threshold)
    return _line(known, row, None, quota.reserved(ctx.db, project_id).get(dimension, 0))


def subject_of(project_id: str, dimension: str) -> audit.Subject:
    """A project's quota in the audit log."""
    return audit.Subject("core.quota", project_id, dimension, project_id)


def quota_locked(ctx: Context, project_id: str, dimension: str) -> Quota:
    """The row of a project's quota, which must be there, locked."""
    query = select(Quota).where(Quota.project_id == project_id, Quota.dimension == dimension)
    return ctx.db.scalars(query.with_for_update().execution_options(populate_existing=True)).one()


def limit_set(
    ctx: Context, row: Quota | UserQuota, limit: int | None, details: dict[str, object], *, warning_threshold: int | None = None
) -> None:  # fmt: skip
    """Set a limit in a locked row within the caller's transaction and tell whether that used it up; before and after go into `details`."""
    before = {"limit": row.limit, "warning_threshold": row.warning_threshold}
    was = quota.level(row.limit, row.used, row.warning_threshold)
    row.limit, row.warning_threshold = limit, row.warning_threshold if warning_threshold is None else warning_threshold
    after = {"limit": row.limit, "warning_threshold": row.warning_threshold}
    changed = [name for name in after if after[name] != before[name]] or ["limit"]
    details.update(before={name: before[name] for name in changed}, after={name: after[name] for name in changed})
    user_id = row.user_id if isinstance(row, UserQuota) else None
    quota.tell(ctx, row.holder, quota.crossed(row.dimension, limit, row.used, row.warning_threshold, before=was, user_id=user_id))


def _refuse_alone(ctx: Context, way: str, details: Mapping[str, object]) -> None:
    """Raise Forbidden for who would raise a limit alone where four eyes are wanted and there is somebody else to look at it."""
    # Also one who is disabled: whoever could disable the other for a moment would be alone.
    admins = select(USERS.c.id).where(USERS.c.platform_role == "platform_admin", USERS.c.id != ctx.principal.user_id)
    if ctx.settings.quota_four_eyes and not ctx.principal.is_system and ctx.db.scalar(admins.limit(1)) is not None:
        raise Forbidden(
            f"Nobody raises a limit alone here (QUOTA_FOUR_EYES): another administrator has to agree. {way}", details={"four_eyes": True, **details}
        )


def _refuse_odd(limit: int | None, threshold: int | None) -> None:
    problems = {}
    if limit is not None and not 0 <= limit <= HIGHEST:
        problems["limit"] = [f"must be 0 to {HIGHEST:,}."]
    if threshold is not None and not 1 <= threshold <= 100:  # noqa: PLR2004 - percent
        problems["warning_threshold"] = ["must be 1 to 100 percent."]
    if problems:
        raise InvalidRequest.fields(problems)


# -- limits of users -------------------------------------------------------------------------------------------------------------------------


def user_dimensions() -> Mapping[str, Dimension]:
    """What a user can be limited in."""
    return {**DIMENSIONS, **USER_DIMENSIONS}


def user_limit(session: Session, user_id: str, known: Dimension) -> int | None:
    """What a user may have of a dimension; None where there is no limit."""
    found = session.scalar(select(UserQuota.limit).where(UserQuota.user_id == user_id, UserQuota.dimension == known.name))
    return found if found is not None else _default(known)


def _default(known: Dimension) -> int | None:
    return None if known.counted is None else known.default


def _user_line(ctx: Context, user_id: str, known: Dimension, row: UserQuota | None) -> QuotaLine:
    if known.counted is None:
        return _line(known, row, None)
    limit, threshold = (None, quota.WARNING_THRESHOLD) if row is None else (row.limit, row.warning_threshold)
    used = known.counted(ctx.db, user_id)
    return QuotaLine(known.name, known.label, known.unit, known.default if limit is None else limit, used, warning_threshold=threshold)


def may_limit_users(ctx: Context) -> bool:
    """Whether the caller sets limits of users, which hold in every project."""
    return decide(ctx, UPDATE, Target(None)).allowed


def user_lines(ctx: Context, user: str) -> list[QuotaLine]:
    """What a user, by id or name, may own and owns; everybody sees their own. Raises NotFound."""
    text = storable(user[:254])
    mine = {ctx.principal.user_id, ctx.principal.username} if ctx.principal.user_id is not None else set()
    found = _user(ctx, text) if text in mine or may_limit_users(ctx) else None
    if found is None:
        raise NotFound(f"There is no user {user[:80]} here.")
    rows = _rows_of(ctx, found[0])
    return [_user_line(ctx, found[0], known, rows.get(name)) for name, known in user_dimensions().items()]


def _rows_of(ctx: Context, user_id: str) -> Mapping[str, UserQuota]:
    query = select(UserQuota).where(UserQuota.user_id == user_id).execution_options(populate_existing=True)
    return {row.dimension: row for row in ctx.db.scalars(query)}


def _user(ctx: Context, text: str) -> tuple[str, str] | None:
    query = select(USERS.c.id, USERS.c.username).where(or_(USERS.c.id == text, USERS.c.username == text))
    row = ctx.db.execute(query).first()
    return None if row is None else (row.id, row.username)


def own_limits(ctx: Context) -> list[QuotaLine]:
    """The limits that the caller has across projects."""
    if (user_id := ctx.principal.user_id) is None:
        return []
    rows = _rows_of(ctx, user_id)
    return [_user_line(ctx, user_id, known, rows[name]) for name, known in user_dimensions().items() if name in rows and rows[name].limit is not None]


def user_limits(ctx: Context) -> list[UserLimit]:
    """Every limit of a user, by name, for whoever may set them; empty for others."""
    if not may_limit_users(ctx):
        return []
    query = select(UserQuota, USERS.c.username).join(USERS, USERS.c.id == UserQuota.user_id).where(UserQuota.limit.is_not(None))
    rows = ctx.db.execute(query.order_by(USERS.c.username, UserQuota.dimension).execution_options(populate_existing=True))
    known = user_dimensions()
    found = [(row, username) for row, username in rows if row.dimension in known]
    return [UserLimit(row.user_id, username, _user_line(ctx, row.user_id, known[row.dimension], row)) for row, username in found]


def user_quota_update(ctx: Context, user: str, dimension: str, limit: int | None, *, warning_threshold: int | None = None) -> UserLimit:
    """Limit what a user, by id or name, may own across projects; None takes the limit away. Raises NotFound, Forbidden or InvalidRequest."""
    known = _known(dimension, user_dimensions())
    details: dict[str, object] = {}
    # Looked up after the permission was decided: who may not set limits does not learn which users exist.
    found = _user(ctx, storable(user[:254])) if may_limit_users(ctx) else None
    user_id, username = found or (storable(user[:64]), storable(user[:254]))
    about = audit.Subject("core.quota", user_id, f"{dimension} of {username}")
    with acting(ctx, UPDATE, about, target=Target(None, label=f"limits of user {username}"), details=details):
        if found is None:
            raise NotFound(f"There is no user {user[:80]}.")
        _refuse_odd(limit, warning_threshold)
        lock_users(ctx.db, user_id)
        quota.ensure_user(ctx.db, user_id, dimension)
        query = select(UserQuota).where(UserQuota.user_id == user_id, UserQuota.dimension == dimension)
        row = ctx.db.scalars(query.with_for_update().execution_options(populate_existing=True)).one()
        present, wanted = (_default(known) if each is None else each for each in (row.limit, limit))
        if user_id == ctx.principal.user_id and present is not None and (wanted is None or wanted > present):
            _refuse_alone(ctx, "This is your own limit: the other can raise it.", {})
        limit_set(ctx, row, limit, details, warning_threshold=warning_threshold)
    return UserLimit(user_id, username, _user_line(ctx, user_id, known, row))
