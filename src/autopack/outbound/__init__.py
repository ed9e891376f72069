"""Requests to addresses that operators name: the only code that sends to other services."""

from .address import Address, AddressError, parse_address, resolve
from .sending import HttpReply, SendError, send

__all__ = ["Address", "AddressError", "HttpReply", "SendError", "parse_address", "resolve", "send"]
