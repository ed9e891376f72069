"""The worker: claims work over HTTP, runs an agent's command in a private work tree, submits it."""
