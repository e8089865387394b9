"""Where things lie in the repository."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CSRC = ROOT / "csrc"


def file_of(name: str) -> str:
    """Return the file of a test by its name alone, whatever folder it lies in."""
    (file,) = TESTS.glob(f"*/test_{name}.py")
    return str(file)
