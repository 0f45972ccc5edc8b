"""What lies under a path of weights: `folders.py` decides it, the other files say what they see."""
