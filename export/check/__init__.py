"""Whether a file is what it should be: against torch, on real speech, frame by frame."""
