"""The front door for agents that speak MCP: same use cases, limits, refusals. (docs/agents.md)"""
