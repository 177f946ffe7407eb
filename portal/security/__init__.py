"""Security services: IAM policies, groups, the simulator."""
