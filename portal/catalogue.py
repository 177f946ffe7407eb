"""All resource types and periodic work of the portal, in one list."""

from portal.compute.flavors import FLAVOR
from portal.compute.images import IMAGE
from portal.compute.instances import INSTANCE
from portal.compute.key_pairs import KEY_PAIR
from portal.kernel.resource import Registry
from portal.security.groups import GROUP
from portal.security.policies import POLICY

# Permissions that belong to no resource type → access level.
PERMISSIONS = {
    "core.job.read": "read",
    "core.quota.read": "read",
    "core.quota.update": "platform",
    "core.event.read": "read",
    "security.audit.read": "audit",
    "security.audit.verify": "audit",
    "security.audit.export": "audit",
    "identity.project.read": "read",
    "identity.project.create": "platform",
    "identity.project.update": "manage",
    "identity.project.bound": "platform",
    "identity.membership.update": "manage",
    "identity.user.read": "platform",
    "identity.user.create": "platform",
    "identity.user.update": "platform",
    "security.iam.simulate": "manage",
}


def build_registry() -> Registry:
    """The registry of this version of the portal."""
    return Registry([INSTANCE, IMAGE, FLAVOR, KEY_PAIR, POLICY, GROUP], PERMISSIONS)
