"""What a run works on, one file per modality."""
