"""The WireGuard example, without a kernel where the name of the module does not say otherwise."""
