"""The database: connections, the embedded PostgreSQL, leases, roles."""

__all__ = ["blocking", "connection", "embedded", "leases", "locations", "outages", "ownership", "roles"]
