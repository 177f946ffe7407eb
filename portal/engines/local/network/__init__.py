"""Networks of one Linux host: network namespaces, bridges with isolated ports, nftables and dnsmasq."""
