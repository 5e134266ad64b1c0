"""`python -m sidestep`."""

from sidestep.cli.main import script

if __name__ == "__main__":
    script()
