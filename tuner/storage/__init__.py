"""The database: connections, the embedded PostgreSQL, leases, roles."""

__all__ = [
    "blocking",
    "connection",
    "embedded",
    "handle",
    "leases",
    "locations",
    "migrations",
    "outages",
    "ownership",
    "roles",
]
