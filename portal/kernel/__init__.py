"""The kernel: resources, operations, jobs, permissions, quotas, audit. It knows no resource type."""
