"""Worker processes and the supervisor that watches them."""

__all__ = ["options", "oversubscription", "processes", "standby", "supervisor", "supervisor_watch", "worker"]
