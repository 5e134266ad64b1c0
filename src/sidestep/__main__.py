"""`python -m sidestep`."""

from sidestep.cli import script

if __name__ == "__main__":
    script()
