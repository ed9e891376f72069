"""The front door for agents that speak MCP: the same use cases, limits and refusals. (06)"""
