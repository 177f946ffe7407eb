"""What console and API share of HTTP: who asks, what is allowed to be asked, how refusals look, limits, headers, probes and metrics."""
