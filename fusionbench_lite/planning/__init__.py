"""From a configuration to a checked plan; never imports torch."""
