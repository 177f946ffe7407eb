"""Networks: VPCs with subnets, security groups, routes, gateways, interfaces, addresses and peerings; instances have a place in them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "flow_records",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("is_accepted", sa.Boolean(), nullable=False),
        sa.Column("protocol", sa.String(length=8), nullable=False),
        sa.Column("source", sa.String(length=15), nullable=False),
        sa.Column("source_port", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(length=15), nullable=False),
        sa.Column("destination_port", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flow_records")),
    )
    op.create_index("ix_flow_records_at", "flow_records", ["at"], unique=False)
    op.create_index("ix_flow_records_vpc", "flow_records", ["vpc_id", "id"], unique=False)
    op.create_table(
        "ip_allocations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("subnet_id", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=15), nullable=False),
        sa.Column("resource_type", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("description", sa.String(length=255), nullable=False),
        sa.Column("allocated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ip_allocations")),
        sa.UniqueConstraint("subnet_id", "address", name=op.f("uq_ip_allocations_subnet_id_address")),
    )
    op.create_index(op.f("ix_ip_allocations_resource_id"), "ip_allocations", ["resource_id"], unique=False)
    op.create_table(
        "vpcs",
        sa.Column("cidr_block", sa.String(length=18), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("enable_dns_support", sa.Boolean(), nullable=False),
        sa.Column("enable_dns_hostnames", sa.Boolean(), nullable=False),
        sa.Column("enable_network_address_translation", sa.Boolean(), nullable=False),
        sa.Column("dns_servers", sa.String(length=255), nullable=False),
        sa.Column("flow_logs_enabled", sa.Boolean(), nullable=False),
        sa.Column("flow_logs_traffic", sa.String(length=32), nullable=False),
        sa.Column("uplink_address", sa.String(length=15), nullable=False),
        sa.Column("main_route_table_id", sa.String(length=64), nullable=True),
        sa.Column("default_group_id", sa.String(length=64), nullable=True),
        sa.Column("desired_revision", sa.BigInteger(), nullable=False),
        sa.Column("applied_revision", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_vpcs_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_vpcs_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vpcs")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_vpcs_resource_id")),
    )
    op.create_index("ix_vpcs_name", "vpcs", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_vpcs_owner_id"), "vpcs", ["owner_id"], unique=False)
    op.create_index("ix_vpcs_page", "vpcs", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_vpcs_project_id"), "vpcs", ["project_id"], unique=False)
    op.create_index(op.f("ix_vpcs_state"), "vpcs", ["state"], unique=False)
    op.create_index(
        "uq_vpcs_live_default",
        "vpcs",
        ["project_id"],
        unique=True,
        sqlite_where=sa.text("is_default AND deleted_at IS NULL"),
        postgresql_where=sa.text("is_default AND deleted_at IS NULL"),
    )
    op.create_index(
        "uq_vpcs_live_name",
        "vpcs",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "internet_gateways",
        sa.Column("vpc_id", sa.String(length=64), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_internet_gateways_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_internet_gateways_project_id_projects")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_internet_gateways_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_internet_gateways")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_internet_gateways_resource_id")),
    )
    op.create_index("ix_internet_gateways_name", "internet_gateways", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_internet_gateways_owner_id"), "internet_gateways", ["owner_id"], unique=False)
    op.create_index("ix_internet_gateways_page", "internet_gateways", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_internet_gateways_project_id"), "internet_gateways", ["project_id"], unique=False)
    op.create_index(op.f("ix_internet_gateways_vpc_id"), "internet_gateways", ["vpc_id"], unique=False)
    op.create_index(
        "uq_internet_gateways_live_name",
        "internet_gateways",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "uq_internet_gateways_live_vpc",
        "internet_gateways",
        ["vpc_id"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "route_tables",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("is_main", sa.Boolean(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_route_tables_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_route_tables_project_id_projects")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_route_tables_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_route_tables")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_route_tables_resource_id")),
    )
    op.create_index("ix_route_tables_name", "route_tables", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_route_tables_owner_id"), "route_tables", ["owner_id"], unique=False)
    op.create_index("ix_route_tables_page", "route_tables", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_route_tables_project_id"), "route_tables", ["project_id"], unique=False)
    op.create_index(op.f("ix_route_tables_vpc_id"), "route_tables", ["vpc_id"], unique=False)
    op.create_index(
        "uq_route_tables_live_name",
        "route_tables",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "security_groups",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_security_groups_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_security_groups_project_id_projects")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_security_groups_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_security_groups")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_security_groups_resource_id")),
    )
    op.create_index("ix_security_groups_name", "security_groups", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_security_groups_owner_id"), "security_groups", ["owner_id"], unique=False)
    op.create_index("ix_security_groups_page", "security_groups", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_security_groups_project_id"), "security_groups", ["project_id"], unique=False)
    op.create_index(op.f("ix_security_groups_vpc_id"), "security_groups", ["vpc_id"], unique=False)
    op.create_index(
        "uq_security_groups_live_name",
        "security_groups",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "vpc_peerings",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("peer_vpc_id", sa.String(length=64), nullable=False),
        sa.Column("link_id", sa.String(length=64), nullable=False),
        sa.Column("is_linked", sa.Boolean(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_vpc_peerings_owner_id_users")),
        sa.ForeignKeyConstraint(["peer_vpc_id"], ["vpcs.id"], name=op.f("fk_vpc_peerings_peer_vpc_id_vpcs")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_vpc_peerings_project_id_projects")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_vpc_peerings_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vpc_peerings")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_vpc_peerings_resource_id")),
    )
    op.create_index(op.f("ix_vpc_peerings_link_id"), "vpc_peerings", ["link_id"], unique=False)
    op.create_index("ix_vpc_peerings_name", "vpc_peerings", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_vpc_peerings_owner_id"), "vpc_peerings", ["owner_id"], unique=False)
    op.create_index("ix_vpc_peerings_page", "vpc_peerings", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_vpc_peerings_peer_vpc_id"), "vpc_peerings", ["peer_vpc_id"], unique=False)
    op.create_index(op.f("ix_vpc_peerings_project_id"), "vpc_peerings", ["project_id"], unique=False)
    op.create_index(op.f("ix_vpc_peerings_state"), "vpc_peerings", ["state"], unique=False)
    op.create_index(op.f("ix_vpc_peerings_vpc_id"), "vpc_peerings", ["vpc_id"], unique=False)
    op.create_index(
        "uq_vpc_peerings_live_name",
        "vpc_peerings",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "routes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("route_table_id", sa.String(length=64), nullable=False),
        sa.Column("destination_cidr", sa.String(length=18), nullable=False),
        sa.Column("target_type", sa.String(length=32), nullable=False),
        sa.Column("target_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["route_table_id"], ["route_tables.id"], name=op.f("fk_routes_route_table_id_route_tables")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_routes")),
        sa.UniqueConstraint("route_table_id", "destination_cidr", name=op.f("uq_routes_route_table_id_destination_cidr")),
    )
    op.create_index(op.f("ix_routes_target_id"), "routes", ["target_id"], unique=False)
    op.create_table(
        "security_group_rules",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.Column("direction", sa.String(length=8), nullable=False),
        sa.Column("protocol", sa.String(length=8), nullable=False),
        sa.Column("from_port", sa.Integer(), nullable=True),
        sa.Column("to_port", sa.Integer(), nullable=True),
        sa.Column("icmp_type", sa.Integer(), nullable=True),
        sa.Column("cidr", sa.String(length=18), nullable=False),
        sa.Column("referenced_group_id", sa.String(length=64), nullable=True),
        sa.Column("description", sa.String(length=255), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.String(length=160), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["security_groups.id"], name=op.f("fk_security_group_rules_group_id_security_groups")),
        sa.ForeignKeyConstraint(
            ["referenced_group_id"], ["security_groups.id"], name=op.f("fk_security_group_rules_referenced_group_id_security_groups")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_security_group_rules")),
        sa.UniqueConstraint("group_id", "fingerprint", name=op.f("uq_security_group_rules_group_id_fingerprint")),
    )
    op.create_index(op.f("ix_security_group_rules_referenced_group_id"), "security_group_rules", ["referenced_group_id"], unique=False)
    op.create_table(
        "subnets",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("cidr_block", sa.String(length=18), nullable=False),
        sa.Column("availability_zone", sa.String(length=64), nullable=False),
        sa.Column("map_public_ip_on_launch", sa.Boolean(), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("tier", sa.String(length=32), nullable=False),
        sa.Column("route_table_id", sa.String(length=64), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_subnets_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_subnets_project_id_projects")),
        sa.ForeignKeyConstraint(["route_table_id"], ["route_tables.id"], name=op.f("fk_subnets_route_table_id_route_tables")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_subnets_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subnets")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_subnets_resource_id")),
    )
    op.create_index("ix_subnets_name", "subnets", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_subnets_owner_id"), "subnets", ["owner_id"], unique=False)
    op.create_index("ix_subnets_page", "subnets", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_subnets_project_id"), "subnets", ["project_id"], unique=False)
    op.create_index(op.f("ix_subnets_route_table_id"), "subnets", ["route_table_id"], unique=False)
    op.create_index(op.f("ix_subnets_vpc_id"), "subnets", ["vpc_id"], unique=False)
    op.create_index(
        "uq_subnets_live_name",
        "subnets",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "network_interfaces",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("subnet_id", sa.String(length=64), nullable=False),
        sa.Column("private_ip", sa.String(length=15), nullable=False),
        sa.Column("public_ip", sa.String(length=15), nullable=False),
        sa.Column("mac_address", sa.String(length=17), nullable=False),
        sa.Column("instance_id", sa.String(length=64), nullable=True),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_network_interfaces_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_network_interfaces_project_id_projects")),
        sa.ForeignKeyConstraint(["subnet_id"], ["subnets.id"], name=op.f("fk_network_interfaces_subnet_id_subnets")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_network_interfaces_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network_interfaces")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_network_interfaces_resource_id")),
    )
    op.create_index(op.f("ix_network_interfaces_instance_id"), "network_interfaces", ["instance_id"], unique=False)
    op.create_index("ix_network_interfaces_name", "network_interfaces", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_network_interfaces_owner_id"), "network_interfaces", ["owner_id"], unique=False)
    op.create_index("ix_network_interfaces_page", "network_interfaces", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_network_interfaces_project_id"), "network_interfaces", ["project_id"], unique=False)
    op.create_index(op.f("ix_network_interfaces_state"), "network_interfaces", ["state"], unique=False)
    op.create_index(op.f("ix_network_interfaces_subnet_id"), "network_interfaces", ["subnet_id"], unique=False)
    op.create_index(op.f("ix_network_interfaces_vpc_id"), "network_interfaces", ["vpc_id"], unique=False)
    op.create_index(
        "uq_network_interfaces_live_name",
        "network_interfaces",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "elastic_ips",
        sa.Column("public_ip", sa.String(length=15), nullable=False),
        sa.Column("interface_id", sa.String(length=64), nullable=True),
        sa.Column("nat_gateway_id", sa.String(length=64), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["interface_id"], ["network_interfaces.id"], name=op.f("fk_elastic_ips_interface_id_network_interfaces")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_elastic_ips_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_elastic_ips_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_elastic_ips")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_elastic_ips_resource_id")),
    )
    op.create_index(op.f("ix_elastic_ips_interface_id"), "elastic_ips", ["interface_id"], unique=False)
    op.create_index("ix_elastic_ips_name", "elastic_ips", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_elastic_ips_nat_gateway_id"), "elastic_ips", ["nat_gateway_id"], unique=False)
    op.create_index(op.f("ix_elastic_ips_owner_id"), "elastic_ips", ["owner_id"], unique=False)
    op.create_index("ix_elastic_ips_page", "elastic_ips", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_elastic_ips_project_id"), "elastic_ips", ["project_id"], unique=False)
    op.create_index(
        "uq_elastic_ips_live_name",
        "elastic_ips",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "network_interface_groups",
        sa.Column("interface_id", sa.String(length=64), nullable=False),
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["security_groups.id"], name=op.f("fk_network_interface_groups_group_id_security_groups")),
        sa.ForeignKeyConstraint(
            ["interface_id"], ["network_interfaces.id"], name=op.f("fk_network_interface_groups_interface_id_network_interfaces")
        ),
        sa.PrimaryKeyConstraint("interface_id", "group_id", name=op.f("pk_network_interface_groups")),
    )
    op.create_index(op.f("ix_network_interface_groups_group_id"), "network_interface_groups", ["group_id"], unique=False)
    op.create_table(
        "nat_gateways",
        sa.Column("vpc_id", sa.String(length=64), nullable=False),
        sa.Column("subnet_id", sa.String(length=64), nullable=False),
        sa.Column("elastic_ip_id", sa.String(length=64), nullable=True),
        sa.Column("public_ip", sa.String(length=15), nullable=False),
        sa.Column("private_ip", sa.String(length=15), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("metadata", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["elastic_ip_id"], ["elastic_ips.id"], name=op.f("fk_nat_gateways_elastic_ip_id_elastic_ips")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_nat_gateways_owner_id_users")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_nat_gateways_project_id_projects")),
        sa.ForeignKeyConstraint(["subnet_id"], ["subnets.id"], name=op.f("fk_nat_gateways_subnet_id_subnets")),
        sa.ForeignKeyConstraint(["vpc_id"], ["vpcs.id"], name=op.f("fk_nat_gateways_vpc_id_vpcs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nat_gateways")),
        sa.UniqueConstraint("resource_id", name=op.f("uq_nat_gateways_resource_id")),
    )
    op.create_index(op.f("ix_nat_gateways_elastic_ip_id"), "nat_gateways", ["elastic_ip_id"], unique=False)
    op.create_index("ix_nat_gateways_name", "nat_gateways", ["project_id", "deleted_at", "name", "id"], unique=False)
    op.create_index(op.f("ix_nat_gateways_owner_id"), "nat_gateways", ["owner_id"], unique=False)
    op.create_index("ix_nat_gateways_page", "nat_gateways", ["project_id", "deleted_at", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_nat_gateways_project_id"), "nat_gateways", ["project_id"], unique=False)
    op.create_index(op.f("ix_nat_gateways_state"), "nat_gateways", ["state"], unique=False)
    op.create_index(op.f("ix_nat_gateways_subnet_id"), "nat_gateways", ["subnet_id"], unique=False)
    op.create_index(op.f("ix_nat_gateways_vpc_id"), "nat_gateways", ["vpc_id"], unique=False)
    op.create_index(
        "uq_nat_gateways_live_name",
        "nat_gateways",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.add_column("instances", sa.Column("subnet_id", sa.String(length=64), nullable=True))
    op.add_column("instances", sa.Column("private_ip", sa.String(length=15), nullable=True))
    op.add_column("instances", sa.Column("public_ip", sa.String(length=15), nullable=True))


def downgrade() -> None:
    op.drop_column("instances", "public_ip")
    op.drop_column("instances", "private_ip")
    op.drop_column("instances", "subnet_id")
    op.drop_index(
        "uq_nat_gateways_live_name",
        table_name="nat_gateways",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_nat_gateways_vpc_id"), table_name="nat_gateways")
    op.drop_index(op.f("ix_nat_gateways_subnet_id"), table_name="nat_gateways")
    op.drop_index(op.f("ix_nat_gateways_state"), table_name="nat_gateways")
    op.drop_index(op.f("ix_nat_gateways_project_id"), table_name="nat_gateways")
    op.drop_index("ix_nat_gateways_page", table_name="nat_gateways")
    op.drop_index(op.f("ix_nat_gateways_owner_id"), table_name="nat_gateways")
    op.drop_index("ix_nat_gateways_name", table_name="nat_gateways")
    op.drop_index(op.f("ix_nat_gateways_elastic_ip_id"), table_name="nat_gateways")
    op.drop_table("nat_gateways")
    op.drop_index(op.f("ix_network_interface_groups_group_id"), table_name="network_interface_groups")
    op.drop_table("network_interface_groups")
    op.drop_index(
        "uq_elastic_ips_live_name",
        table_name="elastic_ips",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_elastic_ips_project_id"), table_name="elastic_ips")
    op.drop_index("ix_elastic_ips_page", table_name="elastic_ips")
    op.drop_index(op.f("ix_elastic_ips_owner_id"), table_name="elastic_ips")
    op.drop_index(op.f("ix_elastic_ips_nat_gateway_id"), table_name="elastic_ips")
    op.drop_index("ix_elastic_ips_name", table_name="elastic_ips")
    op.drop_index(op.f("ix_elastic_ips_interface_id"), table_name="elastic_ips")
    op.drop_table("elastic_ips")
    op.drop_index(
        "uq_network_interfaces_live_name",
        table_name="network_interfaces",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_network_interfaces_vpc_id"), table_name="network_interfaces")
    op.drop_index(op.f("ix_network_interfaces_subnet_id"), table_name="network_interfaces")
    op.drop_index(op.f("ix_network_interfaces_state"), table_name="network_interfaces")
    op.drop_index(op.f("ix_network_interfaces_project_id"), table_name="network_interfaces")
    op.drop_index("ix_network_interfaces_page", table_name="network_interfaces")
    op.drop_index(op.f("ix_network_interfaces_owner_id"), table_name="network_interfaces")
    op.drop_index("ix_network_interfaces_name", table_name="network_interfaces")
    op.drop_index(op.f("ix_network_interfaces_instance_id"), table_name="network_interfaces")
    op.drop_table("network_interfaces")
    op.drop_index(
        "uq_subnets_live_name", table_name="subnets", sqlite_where=sa.text("deleted_at IS NULL"), postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.drop_index(op.f("ix_subnets_vpc_id"), table_name="subnets")
    op.drop_index(op.f("ix_subnets_route_table_id"), table_name="subnets")
    op.drop_index(op.f("ix_subnets_project_id"), table_name="subnets")
    op.drop_index("ix_subnets_page", table_name="subnets")
    op.drop_index(op.f("ix_subnets_owner_id"), table_name="subnets")
    op.drop_index("ix_subnets_name", table_name="subnets")
    op.drop_table("subnets")
    op.drop_index(op.f("ix_security_group_rules_referenced_group_id"), table_name="security_group_rules")
    op.drop_table("security_group_rules")
    op.drop_index(op.f("ix_routes_target_id"), table_name="routes")
    op.drop_table("routes")
    op.drop_index(
        "uq_vpc_peerings_live_name",
        table_name="vpc_peerings",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_vpc_peerings_vpc_id"), table_name="vpc_peerings")
    op.drop_index(op.f("ix_vpc_peerings_state"), table_name="vpc_peerings")
    op.drop_index(op.f("ix_vpc_peerings_project_id"), table_name="vpc_peerings")
    op.drop_index(op.f("ix_vpc_peerings_peer_vpc_id"), table_name="vpc_peerings")
    op.drop_index("ix_vpc_peerings_page", table_name="vpc_peerings")
    op.drop_index(op.f("ix_vpc_peerings_owner_id"), table_name="vpc_peerings")
    op.drop_index("ix_vpc_peerings_name", table_name="vpc_peerings")
    op.drop_table("vpc_peerings")
    op.drop_index(
        "uq_security_groups_live_name",
        table_name="security_groups",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_security_groups_vpc_id"), table_name="security_groups")
    op.drop_index(op.f("ix_security_groups_project_id"), table_name="security_groups")
    op.drop_index("ix_security_groups_page", table_name="security_groups")
    op.drop_index(op.f("ix_security_groups_owner_id"), table_name="security_groups")
    op.drop_index("ix_security_groups_name", table_name="security_groups")
    op.drop_table("security_groups")
    op.drop_index(
        "uq_route_tables_live_name",
        table_name="route_tables",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_route_tables_vpc_id"), table_name="route_tables")
    op.drop_index(op.f("ix_route_tables_project_id"), table_name="route_tables")
    op.drop_index("ix_route_tables_page", table_name="route_tables")
    op.drop_index(op.f("ix_route_tables_owner_id"), table_name="route_tables")
    op.drop_index("ix_route_tables_name", table_name="route_tables")
    op.drop_table("route_tables")
    op.drop_index(
        "uq_internet_gateways_live_vpc",
        table_name="internet_gateways",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(
        "uq_internet_gateways_live_name",
        table_name="internet_gateways",
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_internet_gateways_vpc_id"), table_name="internet_gateways")
    op.drop_index(op.f("ix_internet_gateways_project_id"), table_name="internet_gateways")
    op.drop_index("ix_internet_gateways_page", table_name="internet_gateways")
    op.drop_index(op.f("ix_internet_gateways_owner_id"), table_name="internet_gateways")
    op.drop_index("ix_internet_gateways_name", table_name="internet_gateways")
    op.drop_table("internet_gateways")
    op.drop_index("uq_vpcs_live_name", table_name="vpcs", sqlite_where=sa.text("deleted_at IS NULL"), postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_index(
        "uq_vpcs_live_default",
        table_name="vpcs",
        sqlite_where=sa.text("is_default AND deleted_at IS NULL"),
        postgresql_where=sa.text("is_default AND deleted_at IS NULL"),
    )
    op.drop_index(op.f("ix_vpcs_state"), table_name="vpcs")
    op.drop_index(op.f("ix_vpcs_project_id"), table_name="vpcs")
    op.drop_index("ix_vpcs_page", table_name="vpcs")
    op.drop_index(op.f("ix_vpcs_owner_id"), table_name="vpcs")
    op.drop_index("ix_vpcs_name", table_name="vpcs")
    op.drop_table("vpcs")
    op.drop_index(op.f("ix_ip_allocations_resource_id"), table_name="ip_allocations")
    op.drop_table("ip_allocations")
    op.drop_index("ix_flow_records_vpc", table_name="flow_records")
    op.drop_index("ix_flow_records_at", table_name="flow_records")
    op.drop_table("flow_records")
