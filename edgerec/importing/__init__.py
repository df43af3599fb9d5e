"""Load models from other tools, and rewrite their graphs for compression."""
