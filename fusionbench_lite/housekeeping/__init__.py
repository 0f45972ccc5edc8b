"""What lies in caches and in folders of results, and how it is looked through, checked and cleared; nothing here imports torch.

    entries.py      what lies in a cache, by kind, with its size and when it was last used
    pruning.py      which entries go, and how they are removed beside running jobs
    verifying.py    whether entries are what they were when they were written
    chosen.py       the records of a results folder that a filter takes
    records.py      one record in words, two of them compared, records removed and moved
"""
