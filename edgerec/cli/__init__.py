"""The command line: each module parses a command's options, calls the library and prints the result."""
