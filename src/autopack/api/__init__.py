"""The front door: parse, authorise, call one service, shape the answer."""
