"""In its own folder, so that `pytest tests/sdk` does not boot a system: `scripts/systemd` does."""
