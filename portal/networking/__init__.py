"""Networks: VPCs with subnets, security groups, routes, gateways, interfaces, addresses and peerings."""
