"""Measurements of what adaptation costs, against plain training and autograd, and merging, against straightforward versions."""
