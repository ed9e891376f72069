"""The dashboard: pages for people, rendered by the server, over the same services as the API.

A page shows what an endpoint answers, and links it. See docs/dashboard.md.
"""
