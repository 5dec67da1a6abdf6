"""The dashboard: Optuna's behind a login, with pages of our own."""

__all__ = ["app", "users"]
