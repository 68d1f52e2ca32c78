"""The switch example, without a kernel."""
