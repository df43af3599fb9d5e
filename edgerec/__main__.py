"""``python -m edgerec``"""

from edgerec.cli.app import main

if __name__ == "__main__":
    main()
