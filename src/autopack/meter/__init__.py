"""The gateway of `autopack work --meter`: it measures what an agent spends. (docs/worker.md)"""
