"""The MCP API for agents: the same use cases, limits and refusals as HTTP. (docs/agents.md)"""
