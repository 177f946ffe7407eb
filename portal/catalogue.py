"""All resource types and periodic work of the portal, in one list."""

from portal.compute.flavors import FLAVOR
from portal.compute.images import IMAGE
from portal.compute.instance_steps import Machines
from portal.compute.instances import INSTANCE
from portal.compute.key_pairs import KEY_PAIR
from portal.identity.project_deletion import DELETING
from portal.kernel.audit_export import EXPORTING
from portal.kernel.audit_watch import VERIFYING
from portal.kernel.resource import Registry
from portal.networking.elastic_ips import ELASTIC_IP
from portal.networking.gateways import INTERNET_GATEWAY, NAT_GATEWAY
from portal.networking.guests import GuestNetworks
from portal.networking.interfaces import NETWORK_INTERFACE
from portal.networking.peerings import VPC_PEERING
from portal.networking.routes import ROUTE_TABLE
from portal.networking.security_groups import SECURITY_GROUP
from portal.networking.subnets import SUBNET
from portal.networking.vpc import VPC
from portal.security.encryption_keys import KEY
from portal.security.groups import GROUP
from portal.security.policies import POLICY
from portal.security.roles import ROLE
from portal.storage.actions import WRITE
from portal.storage.asked_encryption import FIELDS
from portal.storage.buckets import BUCKET
from portal.storage.emptying import EMPTYING
from portal.storage.guests import GuestVolumes
from portal.storage.replication import REPLICATING
from portal.storage.snapshots import SNAPSHOT
from portal.storage.volume_types import VOLUME_TYPE
from portal.storage.volumes import VOLUME
from portal.storage.webhooks import WEBHOOK

# Permissions that belong to no resource type → access level.
PERMISSIONS = {
    "core.job.read": "read",
    "core.quota.read": "read",
    "core.quota.update": "platform",
    "core.quota.request": "write",
    "core.event.read": "read",
    "security.audit.read": "audit",
    "security.audit.verify": "audit",
    "security.audit.export": "audit",
    "identity.project.read": "read",
    "identity.project.create": "platform",
    "identity.project.update": "manage",
    "identity.project.delete": "manage",
    "identity.project.bound": "platform",
    "identity.membership.update": "manage",
    "identity.user.read": "platform",
    "identity.user.create": "platform",
    "identity.user.update": "platform",
    "identity.user.delete": "platform",
    "identity.user.invite": "platform",
    "identity.user.sign_out": "platform",
    "identity.mfa.require": "platform",
    "identity.mfa.reset": "platform",
    "identity.service_account.read": "manage",
    "identity.service_account.create": "manage",
    "identity.service_account.update": "manage",
    "identity.service_account.delete": "manage",
    "identity.service_account.create_key": "manage",
    "identity.service_account.rotate_key": "manage",
    "identity.service_account.delete_key": "manage",
    "identity.oauth_client.read": "platform",
    "identity.oauth_client.update": "platform",
    "identity.oauth_client.rotate_secret": "platform",
    "identity.oauth_client.delete": "platform",
    "security.iam.simulate": "manage",
    "storage.object.list": "read",
    "storage.object.read": "read",
    "storage.object.write": "write",
    "storage.object.delete": "delete",
    "storage.object.publish": "manage",
    "storage.object.read_acl": "read",
    "storage.object.retain": "delete",
    "storage.object.hold": "manage",
    "storage.object.bypass_retention": "manage",
}

# Events that belong to no resource type → when they are written.
EVENTS = {
    "networking.vpc.drifted": "Something of a network was missing on the host, as the payload says; it is being brought back.",
    "networking.vpc.bound_reached": "A guest had as many connections as a bound lets it have, and more were refused; told once an hour for each address.",
    "core.worker.hung": "Something that has to come on hung in a worker, which ended itself so that another begins; the resource is what hung.",
    "core.quota.warning": "The use of a quota rose to its warning threshold; the resource is the project, or the user whose own limit it is.",
    "core.quota.exhausted": "The use of a quota rose to its limit: what needs more is refused from now on.",
    "core.quota.request.requested": "Somebody asked for a higher limit.",
    "core.quota.request.approved": "A request was approved, and the limit set.",
    "core.quota.request.denied": "A request was denied.",
    "core.quota.request.withdrawn": "Whoever asked took the request back.",
    "storage.object.damaged": "Bytes of an object are not what was written, as the payload says; it is not given out. The resource is the bucket.",
    "security.role.assume": "Somebody began to act in a role.",
    "security.role.end_session": "A session in a role was ended before its time.",
}


def build_registry() -> Registry:
    """The registry of this version of the portal."""
    networking = [VPC, SUBNET, SECURITY_GROUP, ROUTE_TABLE, INTERNET_GATEWAY, NAT_GATEWAY, NETWORK_INTERFACE, ELASTIC_IP, VPC_PEERING]
    storage = [VOLUME, SNAPSHOT, VOLUME_TYPE, BUCKET, WEBHOOK]
    types = [INSTANCE, IMAGE, FLAVOR, KEY_PAIR, *networking, *storage, KEY, POLICY, GROUP, ROLE]
    asked = [EXPORTING, VERIFYING, DELETING, EMPTYING, REPLICATING]
    return Registry(types, PERMISSIONS, asked, networks=GuestNetworks(), volumes=GuestVolumes(), machines=Machines(), fields={WRITE: FIELDS})
