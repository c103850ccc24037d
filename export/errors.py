"""What is raised of files that are not what they should be; importable without torch."""


class VerificationError(RuntimeError):
    """A file that departs from torch, or that is not one of ours."""
