"""Fine-tuning an expert, or one model on the labels of all tasks, from a pretrained encoder under frozen zero-shot heads.

Nothing is imported here: experts that are in the cache are read without what trains them.
"""
