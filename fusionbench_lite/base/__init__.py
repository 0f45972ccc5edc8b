"""What every part of the package stands on: processes, progress, random streams, hashes of files."""
