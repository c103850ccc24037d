"""What a user meets on the command line: help, errors, progress, logs, signals."""
