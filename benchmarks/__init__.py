"""Measurements of what adaptation costs, against plain training and against autograd through the merge."""
