"""Self-supervised methods, each with and without the SSQL branch."""

from ssql.methods.method import Method, NonFiniteLossError, SSQLOptions
from ssql.methods.simsiam import SimSiam

__all__ = ["Method", "NonFiniteLossError", "SSQLOptions", "SimSiam"]
