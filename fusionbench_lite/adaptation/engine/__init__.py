"""The adaptation engine: merged weights as leaves, gradients of the small parameters in closed form."""
