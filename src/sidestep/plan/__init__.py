"""The plan: format, tracing and lowering of networks, writer."""
