"""The worker: claims work over HTTP, lets a command do it in a private work tree, hands it in."""
