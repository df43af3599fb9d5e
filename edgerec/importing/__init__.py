"""Read models from other tools, and rewrite their graphs so that they can be compressed."""
