"""The bodies of adaptive methods: what their steps do, apart from the engine that runs them."""
