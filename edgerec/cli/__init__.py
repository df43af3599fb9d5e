"""The command line: parsing here, work in the library, showing in ``output``."""
