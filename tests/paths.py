"""Where tests find what lies outside of the package."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
SHARED = ROOT.parent / "shared"
