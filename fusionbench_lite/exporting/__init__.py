"""The model of a record, taken away: remade from the record, written, loaded again and compared with what was predicted."""
